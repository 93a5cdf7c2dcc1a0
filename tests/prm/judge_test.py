"""The protocols of evaluation on cases worked out by hand, against loops, and on public data; the command eval."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from prm_jax import cli
from prm_jax.data.step_data import StepRecord, read_step_data
from prm_jax.errors import UserError
from prm_jax.prm.ablation import check_masks, masked_records
from prm_jax.prm.calibrate import with_intervals
from prm_jax.prm.cases import Case, case_of, read_cases
from prm_jax.prm.judge import categories, judge_scores, min_at_last, process_bench, verbosity
from prm_jax.prm.judge_calibration import calibration
from prm_jax.prm.judge_page import results_page
from prm_jax.prm.judge_selection import best_of_n, ranking, selection, tracking
from prm_jax.prm.score import Scored


def case(scores, *, labels=None, outcome=None, group="g", name="c", response=None, **provenance) -> Case:
    value = min(scores) if response is None else response
    return Case(name, group, tuple(scores), value, labels, outcome, 10 * len(scores), provenance)


def test_the_first_wrong_step_by_a_threshold_from_one_subset():
    right, wrong = (1.0, 1.0), (1.0, 0.0)
    first = [case([0.9, 0.8], labels=right), case([0.7, 0.2], labels=wrong), case([0.3, 0.1], labels=(0.0, None))]
    # The threshold must lie above .3 (the third's first step) and below .7: all three are right then.
    other = [case([0.9, 0.95], labels=right), case([0.9, 0.8], labels=wrong), case([0.5, 0.5])]
    found = process_bench({"first": first, "other": other}, resamples=100)
    assert found["threshold_on"] == "first" and 0.3 < found["threshold"] <= 0.7
    one, two = found["subsets"]["first"], found["subsets"]["other"]
    assert (one["f1"], one["wrong"], one["right"]) == (1.0, 2, 1) and one["interval"][1] == 1.0
    assert (two["f1"], two["error_acc"], two["correct_acc"], two["unlabelled"]) == (0.0, 0.0, 1.0, 1)
    assert found["average_f1"] == 0.5 and one["always_right_f1"] == 0.0
    assert one["random_f1"] == pytest.approx(2 * 0.25 * 0.5 / 0.75)
    again = process_bench({"first": first, "other": other}, threshold_on="other", resamples=0)
    assert again["threshold_on"] == "other" and "interval" not in again["subsets"]["first"]
    with pytest.raises(UserError, match="expected 0 .no intervals. or at least 100, found 99"):
        process_bench({"first": first}, resamples=99)
    with pytest.raises(UserError, match="did you mean 'first'"):
        process_bench({"first": first}, threshold_on="frist")
    with pytest.raises(UserError, match="'empty' is empty"):
        judge_scores({"empty": []})
    assert "skipped" in process_bench({"bare": [case([1.0])]})


def test_the_random_baseline_on_the_public_subset(data_dir):
    records = read_step_data(data_dir / "processbench" / "gsm8k.json")
    cases = [case([0.5] * len(r.steps), labels=r.labels, group=r.group, name=r.id) for r in records]
    found = process_bench({"gsm8k": cases}, resamples=0)["subsets"]["gsm8k"]
    assert (found["wrong"], found["right"]) == (207, 193)
    assert found["random_f1"] == pytest.approx(0.1725, abs=1e-3)  # simulated: 0.174


def groups(seed=0, count=5, size=4):
    rng = np.random.default_rng(seed)
    return [
        case(
            rng.random(3).round(3).tolist(), outcome=float(rng.random() < 0.5), group=f"g{g}", name=f"{g}.{i}",
            answer=str(rng.integers(3)),
        )
        for g in range(count)
        for i in range(size)
    ]  # fmt: skip


def test_best_of_n_is_the_mean_over_all_choices():
    cases = groups()
    found = best_of_n(cases, output="probability")
    assert found["sizes"] == [1, 2, 4] and found["problems"] == [5, 5, 5]
    assert found["kl_bound"][0] == 0 and found["kl_bound"][2] == pytest.approx(np.log(4) - 0.75)
    by = [cases[i : i + 4] for i in range(0, 20, 4)]
    for index, n in enumerate(found["sizes"]):
        picks = [max(c, key=lambda x: x.response).outcome for g in by for c in itertools.combinations(g, n)]
        assert found["accuracy"]["as_scored"][index] == pytest.approx(np.mean(picks), abs=1e-6)
        best = [max(x.outcome for x in c) for g in by for c in itertools.combinations(g, n)]
        assert found["oracle"][index] == pytest.approx(np.mean(best), abs=1e-6)
        last = [max(c, key=lambda x: x.scores[-1]).outcome for g in by for c in itertools.combinations(g, n)]
        assert found["accuracy"]["last"][index] == pytest.approx(np.mean(last), abs=1e-6)
    assert {"min", "prod", "mean_odds"} <= found["accuracy"].keys()
    votes = []
    for g in by:
        totals = {}
        for c in g:
            totals[c.provenance["answer"]] = totals.get(c.provenance["answer"], 0) + c.response
        best = max(totals.values())
        votes.append(next(c.outcome for c in g if totals[c.provenance["answer"]] == pytest.approx(best)))
    assert found["votes"]["weighted"][-1] == pytest.approx(np.mean(votes))
    assert "prod" not in best_of_n(cases, output="log_ratio")["accuracy"]
    assert "skipped" in best_of_n([case([0.1], outcome=1.0)], output="score")


def test_one_right_solution_against_the_wrong_ones():
    def of(group, response, outcome):
        return case([response], outcome=outcome, group=group)

    cases = [of("a", 0.9, 1.0), of("a", 0.5, 0.0), of("a", 0.2, 0.0), of("b", 0.4, 1.0), of("b", 0.8, 0.0)]
    cases += [of("c", 0.1, 1.0)]  # nothing to beat: not counted
    found = ranking(cases)
    assert found["problems"] == 2 and found["accuracy"] == 0.5 and found["mrr"] == pytest.approx(0.75)
    assert found["pairwise"] == pytest.approx(2 / 3)


def test_calibration_is_fitted_on_other_problems():
    rng = np.random.default_rng(0)
    chance = rng.random(400)
    labels = (rng.random(400) < chance).astype(float)
    over = 1 / (1 + np.exp(-3 * np.log(chance / (1 - chance))))  # three times too sure
    pairs = zip(over.tolist(), labels.tolist(), strict=True)
    cases = [case([x], labels=(y,), group=f"g{i}") for i, (x, y) in enumerate(pairs)]
    found = calibration(cases, output="probability")["steps"]
    assert found["raw"]["ece"] > 0.1 > 0.08 > found["platt"]["ece"]
    assert found["platt"]["brier"] < found["raw"]["brier"] and found["isotonic"]["brier"] < found["raw"]["brier"]
    assert 0.2 < found["platt_map"][0] < 0.5 and sum(found["reliability"]["size"]) == found["count"]
    assert "skipped" in calibration(cases, output="probability")["solutions"]


def test_selection_counts_its_false_discoveries():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(10):
        good = rng.random(300) < 0.5
        scores = rng.normal(2.0 * good)
        cases = [
            case([float(s)], outcome=float(g), group=f"g{i}", name=str(i))
            for i, (s, g) in enumerate(zip(scores, good, strict=True))
        ]
        found = selection(cases, level=0.2)
        assert found["selected"] == len(found["ids"]) > 20
        shares.append(found["false_share"])
    assert 0.1 < np.mean(shares) < 0.23 < 0.4 < found["base_rate"]
    assert "skipped" in selection(cases[:12], level=0.2)


def test_a_selection_over_several_scorers_keeps_its_bound():
    """The given score is noise; the mean of the steps and another model know something. Choosing costs no bound."""
    rng = np.random.default_rng(0)
    shares, plain, chosen = [], 0, {}
    for seed in range(8):
        good = rng.random(240) < 0.5
        cases, other = [], {}
        for i, right in enumerate(good.tolist()):
            steps = tuple(rng.normal(1.5 * right, size=3).tolist())
            name = f"s{i}"
            cases.append(Case(name, f"g{i}", steps, float(rng.normal()), None, float(right), 0))
            other[name] = Case(name, f"g{i}", (0.0,), float(rng.normal(1.0 * right)), None, float(right), 0)
        found = selection(cases, level=0.2, also={"other": other}, seed=seed)
        best = found["optimized"]
        shares.append(best["false_share"])
        plain += found["selected"]
        for name, count in best["scorers"].items() if best["selected"] else ():
            chosen[name] = chosen.get(name, 0) + count
    assert np.mean(shares) < 0.25 and sum(chosen.values()) > 60 > 2 * plain and chosen.get("as_scored", 0) < 5
    with pytest.raises(UserError, match="--also other has no scores of the solution 's0'"):
        selection(cases, level=0.2, also={"other": {}})


def test_venn_abers_calibrates_and_says_how_surely():
    rng = np.random.default_rng(0)
    chance = rng.random(400)
    labels = (rng.random(400) < chance).astype(float)
    over = 1 / (1 + np.exp(-3 * np.log(chance / (1 - chance))))
    pairs = zip(over.tolist(), labels.tolist(), strict=True)
    cases = [case([x], labels=(y,), group=f"g{i}") for i, (x, y) in enumerate(pairs)]
    found = calibration(cases, output="probability", venn_abers=True)["steps"]
    assert found["venn_abers"]["brier"] < found["raw"]["brier"] and 0 < found["venn_abers"]["width"] < 0.3
    assert found["venn_abers"]["ece"] < 0.1


def test_intervals_hold_the_wanted_share_of_values():
    rng = np.random.default_rng(0)

    def scored(count, name):
        made = []
        for i in range(count):
            truth = tuple(rng.random(2).tolist())
            guess = tuple(float(np.clip(t + rng.normal(scale=0.1), 0, 1)) for t in truth)
            record = StepRecord("p", ("a", "b"), truth, None, f"{name}{i}", f"{name}{i}")
            made.append(Scored(record, guess, min(guess)))
        return made

    known, new = [case_of(one) for one in scored(200, "k")], scored(400, "n")
    found = with_intervals(new, known, level=0.8, bounded=True)
    inside = [
        low <= truth <= high
        for one in found
        for truth, (low, high) in zip(one.record.labels, one.intervals, strict=True)
    ]
    assert 0.75 < np.mean(inside) < 0.86
    widths = [high - low for one in found for low, high in one.intervals]
    assert 0.15 < np.mean(widths) < 0.35 and min(low for one in found for low, _ in one.intervals) >= 0
    # With quantiles of its own the model says where it is less sure.
    wide = [dataclasses.replace(one, quantiles=((0.1, 0.5, 0.9), (0.45, 0.5, 0.55))) for one in new]
    own = with_intervals(wide, [case_of(one) for one in wide[:50]], level=0.8, bounded=True)
    first, second = own[0].intervals
    assert first[1] - first[0] == pytest.approx(second[1] - second[0] + 0.7, abs=0.02) or first[1] == 1.0
    with pytest.raises(UserError, match="need at least 9 steps with labels or outcomes, found 2"):
        with_intervals(new, known[:1], level=0.9, bounded=True)
    with pytest.raises(UserError, match="only one of the two has quantiles"):
        with_intervals(wide, known, level=0.8, bounded=True)


def test_masks_take_away_parts_of_the_input():
    text = r"So the total is 3x + \frac{1}{2}, that is 4 apples"
    record = StepRecord("How many?", (text, "words only"), (1.0, 0.0), None, "g", "r")

    def steps(mask):
        return masked_records([record], mask)[0].steps

    assert "total" not in steps("language")[0] and r"3x + \frac{1}{2}" in steps("language")[0]
    assert steps("language")[1] == "y"  # nothing is left, so that its last character stays
    assert "total" in steps("mathematics")[0] and not any(c in steps("mathematics")[0] for c in "3+42\\")
    assert steps("regex:apples|words")[0].endswith("4 ") and steps("regex:apples|words")[1] == " only"
    assert masked_records([record], "problem")[0].prompt == ""
    parts = masked_records([record], "earlier")
    assert [one.steps for one in parts] == [(text,), ("words only",)]
    assert check_masks(["languge", "regex:("]) and not check_masks(["earlier", "regex:a+"])


def test_small_facts():
    lows = [case([0.9, 0.1]), case([0.9, 0.5, 0.2]), case([0.1, 0.9]), case([0.3])]
    found = min_at_last(lows)
    assert found["share"] == pytest.approx(2 / 3) and found["chance"] == pytest.approx((0.5 + 1 / 3 + 0.5) / 3)
    assert verbosity([case([0.1] * n, response=float(n)) for n in (1, 2, 3, 4)])["length"] == pytest.approx(1.0)
    marked = [case([0.9, 0.1], labels=(1.0, 0.0), category="a"), case([0.2, 0.1], labels=(1.0, 0.0), category="b")]
    by = categories(marked, threshold=None)
    assert by["a"]["score"] == 1.0 and by["b"]["f1_right"] == 0.0 and by["b"]["f1_wrong"] == pytest.approx(2 / 3)
    drift = [case([p], outcome=o, response=p, update=u) for u, p, o in ((0, 0.1, 1.0), (0, 0.2, 1.0), (1, 0.8, 0.0))]
    assert tracking(drift)["first_divergence"] == 1


def lines(cases) -> str:
    return "".join(
        json.dumps({
            "id": c.id, "group": c.group, "scores": c.scores, "score": c.response, "labels": c.labels,
            "outcome": c.outcome, "provenance": c.provenance,
        }) + "\n"
        for c in cases
    )  # fmt: skip


def test_the_command_reads_scores_and_writes_a_page(tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    labelled = [dataclasses.replace(c, labels=(1.0, c.outcome, None), id="<b>") for c in groups()]
    file.write_text(lines(labelled))
    words = ["eval", f"gsm8k={file}", "--scored", "--out", str(tmp_path / "out"), "--false-discovery", "0.2"]
    assert cli.main([*words, "--resamples", "100"]) == 0
    assert "gsm8k: first-error F1" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["step_score"] == "probability" and results["subsets"]["gsm8k"]["solutions"] == 20
    text = (tmp_path / "out" / "results.html").read_text()
    assert text.count("<svg") >= 1 and "<script" not in text and "Best of n" in text
    assert "&lt;i&gt;" in results_page({**results, "subsets": {}}, title="<i>")


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"scores": [NaN], "score": 1}', r"scores\[0\]: expected a finite number, found nan"),
        ('{"scores": [0.1], "score": 1, "labels": [1, 0]}', "2 labels for 1 steps"),
        ('{"scores": [], "score": 1}', "one per step"),
        ("", "has no scored solutions|empty|no"),
    ],
)
def test_bad_scores_are_named(tmp_path, text, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(UserError, match=message):
        read_cases(file)


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert cli.main(["eval"]) == 2 and "which data" in capsys.readouterr().err
    assert cli.main(["eval", "a.jsonl"]) == 2 and "--scored" in capsys.readouterr().err
    assert cli.main(["eval", "x/a.jsonl", "y/a.jsonl", "--scored"]) == 2
    assert "two subsets are called 'a'" in capsys.readouterr().err
    for words, message in (
        (["a.jsonl", "--scored", "--threshold-on", "b"], "--threshold-on 'b' is not a subset"),
        (["a.jsonl", "--model", "m", "--output", "value"], "--output is for --scored files"),
        (["a.jsonl", "--scored", "--false-discovery", "1.5"], "--false-discovery is 1.5; it must be within (0, 1)"),
        (["a.jsonl", "--scored", "--mask", "language"], "--mask scores the solutions again"),
        (["a.jsonl", "--model", "m", "--mask", "langage"], "--mask 'langage' is unknown; did you mean"),
        (["a.jsonl", "--scored", "--also", "b=b.jsonl"], "--also is for the selection: give --false-discovery"),
        (["a/b=a.jsonl", "--scored"], "cannot be the name of a subset"),
    ):
        assert cli.main(["eval", *words]) == 2 and message in " ".join(capsys.readouterr().err.split())


def test_a_model_is_judged_in_one_call(config, params, tokenizer, records, tmp_path, capsys):
    from prm_jax.data.step_data import write_step_data
    from prm_jax.prm import TextLayout, Token, save
    from prm_jax.prm.forward import init_head
    from prm_jax.prm.score import PRM
    from prm_jax.prm.spec import Spec, Weights

    spec = Spec(Token(), config)
    head = init_head(spec, jax.random.key(5), num_outputs=2, random=True)
    save(tmp_path / "mine" / "model", PRM(spec, Weights(params, head, {}), tokenizer, TextLayout(separator=" ")))
    write_step_data(tmp_path / "a.jsonl", records[:12])
    write_step_data(tmp_path / "b.jsonl", [dataclasses.replace(one, labels=None) for one in records[12:]])
    files, out = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], tmp_path / "out"
    words = ["eval", *files, "--model", str(tmp_path / "mine" / "model"), "--out", str(out), "--resamples", "100"]
    assert cli.main([*words, "--threshold-on", "b"]) == 2
    assert "no solution of this subset is labelled" in capsys.readouterr().err and not (out / "scores").exists()
    masks = ["--mask", "problem", "earlier", "regex:[xyz]"]
    assert cli.main([*words, *masks]) == 0
    assert "a without earlier: correlation with whole scores" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())["ablation"]
    assert set(found) == {"problem", "earlier", "regex:[xyz]"} and set(found["earlier"]) == {"a", "b"}
    assert len(found["problem"]["a"]["auc"]) == 2 and "auc" not in found["problem"]["b"]
    page = (out / "results.html").read_text()
    assert "Without a part of the input" in page
    assert cli.main(words) == 0
    assert "<title>mine/model judged on a, b</title>" in (out / "results.html").read_text()
    kept = [str(out / "scores" / f"{name}.jsonl") for name in "ab"]
    assert cli.main(["eval", *kept, "--scored", "--out", str(tmp_path), "--resamples", "100"]) == 0
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path))
    assert one["process_bench"] == two["process_bench"] and one["step_score"] == two["step_score"]
