"""The command label on the carry task: with a model that knows nothing, and a made-up careless one."""

import json

import numpy as np
import pytest

from prm_jax import cli
from prm_jax.data.carry import CarryTask
from prm_jax.data.step_data import read_step_data
from prm_jax.prm.data import step_pairs
from prm_jax.prm.labelling import edit_distance
from prm_jax.verifiers.verdict import Verdict
from tests.search.careless import LABEL, SMALL, TREE, Careless, save_reward_model, stand_in

pytestmark = pytest.mark.heavy


def test_a_damaged_part_of_labels_is_refused(model, careless, tmp_path, capsys):
    partial = tmp_path / "labels.jsonl.partial"
    words = ["label", model, str(tmp_path / "labels.jsonl"), *LABEL, "--searches", "2"]
    assert cli.main(words) == 0
    head = (tmp_path / "labels.jsonl.settings").read_text()
    (tmp_path / "labels.jsonl").unlink()
    for damaged in ({"calls": 3}, {"calls": "3", "records": []}, {"calls": 3, "records": [1]}):
        partial.write_text(head + json.dumps(damaged) + "\n")
        assert cli.main([*words, "--resume"]) == 2
        assert "line 2 is not the result of one of 1 chunks" in capsys.readouterr().err
    partial.write_text(head + 2 * (json.dumps({"calls": 3, "records": []}) + "\n"))
    assert cli.main([*words, "--resume"]) == 2 and "line 3 is not the result of" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["omega", "every_step", "adaptive"])
@pytest.mark.parametrize("kind", ["soft", "hard", "vstar"])
def test_labels_find_the_true_first_error(method, kind, model, careless, tmp_path, capsys):
    out = tmp_path / "labels.jsonl"
    words = ["label", model, str(out), *LABEL, "--method", method, "--labels", kind, "--searches", "4", "--chunk", "4"]
    assert cli.main(words) == 0
    task, right, known = CarryTask(5, 5), 0, 0
    problems = {task.train[i].id: task.train[i] for i in range(6)}
    for record in read_step_data(out):
        truth = task.step_labels(problems[record.group], "".join(record.steps))
        assert record.provenance["method"] == method and len(record.provenance["correct"]) == len(record.steps)
        assert record.outcome == float(all(truth))
        for label, correct in zip(record.labels, truth, strict=True):
            if label is not None:
                # A wrong prefix is never saved; a right one may look wrong when no rollout was lucky.
                assert correct or label == 0
                right, known = right + (correct == (label > 0)), known + 1
    assert known > 20 and right / known > 0.8
    assert cli.main(words) == 2 and "exists" in capsys.readouterr().err


def test_adaptive_labels_spend_rollouts_where_they_disagree(model, careless, tmp_path):
    out = tmp_path / "labels.jsonl"
    words = ["label", model, str(out), *LABEL, "--labels", "soft", "--method", "adaptive", "--rollouts", "16"]
    assert cli.main([*words, "--chunk", "4"]) == 0
    records = read_step_data(out)
    shares = [
        (total, count / total)
        for one in records
        for total, count in zip(one.provenance["total"][:-1], one.provenance["correct"][:-1], strict=True)
    ]
    unsure = [total for total, rate in shares if 0.2 < rate < 0.8]
    sure = [total for total, rate in shares if rate in (0.0, 1.0)]
    assert min(total for total, _ in shares) >= 1 and np.mean(unsure) > np.mean(sure) + 1
    assert np.mean([total for total, _ in shares]) == pytest.approx(12, abs=0.01)  # 16 less the pilot's 4
    other = tmp_path / "other.jsonl"  # another division of the problems changes nothing
    assert cli.main(["label", model, str(other), *words[3:], "--chunk", "2"]) == 0
    assert [one.labels for one in read_step_data(other)] == [one.labels for one in records]


@pytest.mark.parametrize("method", ["omega", "every_step", "tree"])
def test_answers_that_cannot_be_checked_label_nothing(method, model, careless, tmp_path, monkeypatch):
    judge, bad = CarryTask.verify_many, CarryTask(5, 5).train[0].prompt

    def doubtful(self, problems, responses):
        found = judge(self, problems, responses)
        wrong = Verdict(0.0, "error", "no reference")
        return [wrong if p.prompt == bad else verdict for p, verdict in zip(problems, found, strict=True)]

    monkeypatch.setattr(CarryTask, "verify_many", doubtful)
    out = tmp_path / "labels.jsonl"
    more = ["--method", method, "--searches", "2", "--tree.simulations", "6"]
    assert cli.main(["label", model, str(out), *LABEL, *more]) == 0
    records = read_step_data(out)
    assert len(records) > 4 and all(record.prompt != bad for record in records)


@pytest.mark.parametrize("method", ["omega", "tree"])
def test_labelling_goes_on_after_an_interruption(method, model, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "labels.jsonl"
    partial = tmp_path / "labels.jsonl.partial"
    more = [*LABEL, "--method", method, "--chunk", "2", "--searches", "3", "--tree.simulations", "4"]
    policy = Careless()
    stand_in(monkeypatch, policy)
    assert cli.main(["label", model, str(whole), *more]) == 0
    assert not whole.with_name("whole.jsonl.partial").exists()

    def interrupted(*args, options, **rest):
        if min(options.prompt_ids) >= 4 << 14:  # the third chunk
            raise KeyboardInterrupt
        return policy(*args, options=options, **rest)

    stand_in(monkeypatch, interrupted)
    words = ["label", model, str(out), *more]
    assert cli.main(words) == 130 and not out.exists()
    assert len(partial.read_text().splitlines()) == 3  # the settings, two chunks
    stand_in(monkeypatch, policy)
    assert cli.main(words) == 2 and "continue with --resume" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2 and "other seed (0, now 1)" in capsys.readouterr().err
    text = partial.read_text()
    partial.write_bytes(text.encode()[:-40] + "\N{WHITE SMILING FACE}".encode()[:-1])  # killed while writing
    assert cli.main([*words, "--resume"]) == 0
    assert out.read_text() == whole.read_text() and not partial.exists()
    assert cli.main([*words, "--resume"]) == 0 and "is finished" in capsys.readouterr().out
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2 and "other seed (0, now 1)" in capsys.readouterr().err
    for option, value in (("--problems", "7"), ("--searches", "9"), ("--sampling.step-tokens", "20")):
        assert cli.main([*words, "--resume", option, value]) == 2
        assert f"other {option[2:].replace('-', '_')} (" in capsys.readouterr().err
    out.with_name("labels.jsonl.settings").unlink()  # the lines themselves tell some of it
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2 and "other seed" in capsys.readouterr().err
    assert cli.main([*words]) == 2 and "exists" in capsys.readouterr().err
    partial.write_text("")  # stopped before the first line was there
    out.unlink()
    assert cli.main([*words, "--resume"]) == 0 and out.read_text() == whole.read_text()


def truths(record):
    task = CarryTask(5, 5)
    problems = {task.train[i].id: task.train[i] for i in range(6)}
    return task.step_labels(problems[record.group.partition("/tree/")[0]], "".join(record.steps))


@pytest.mark.parametrize("kind", ["q", "soft", "hard", "quality"])
def test_trees_as_labels(kind, model, careless, tmp_path):
    out = tmp_path / "labels.jsonl"
    assert cli.main(["label", model, str(out), *TREE, "--labels", kind]) == 0
    records = read_step_data(out)
    values = {True: [], False: []}
    for record in records:
        truth = truths(record)
        told = record.provenance
        assert told["method"] == "tree" and told["rule"] == "alphamath" and told["scorer"] == "none"
        # The answer is part of the same proposal as the last sum, of which nothing is told by itself.
        assert len(record.steps) == 5 and [i for i, label in enumerate(record.labels) if label is None] == [3]
        assert record.outcome == float(all(truth))
        for i, (label, right) in enumerate(zip(record.labels, truth, strict=True)):
            if label is None:
                continue
            values[right].append(label)
            if kind in ("soft", "hard"):
                share = told["correct"][i] / told["total"][i]
                assert label == pytest.approx(share if kind == "soft" else float(share > 0)) and (right or label == 0)
            if kind == "quality" and all(truth):  # a right path of four proposals: k / 4
                assert label == pytest.approx((i + 1) / 4 if i < 4 else 1.0)
    assert len(records) > (5 if kind == "quality" else 10)  # some problems have no right answer
    assert np.mean(values[True]) > np.mean(values[False]) + 0.3
    assert len({(r.group, r.steps) for r in records}) == len(records)


@pytest.mark.parametrize("kind", ["best_worst", "first_error", "top_bottom"])
def test_trees_as_preferences(kind, model, careless, tmp_path):
    out = tmp_path / "pairs.jsonl"
    more = ["--labels", kind, "--tree.rule", "rest_mcts", "--tree.scorer", "rollouts", "--rollouts", "4"]
    assert cli.main(["label", model, str(out), *TREE, *more]) == 0
    records = read_step_data(out)
    right = []
    for good, bad in zip(records[::2], records[1::2], strict=True):
        assert good.group == bad.group and good.id == f"{good.group}/chosen" and bad.id == f"{good.group}/rejected"
        assert good.steps[:-1] == bad.steps[:-1] and good.steps[-1] != bad.steps[-1]
        assert good.labels == (None,) * (len(good.steps) - 1) + (1.0,) and bad.labels[-1] == 0.0
        gap = good.provenance["q"] - bad.provenance["q"]
        assert gap >= {"top_bottom": 0.5, "best_worst": 1e-9, "first_error": -1.0}[kind]
        right.append(truths(good)[-1])
    assert len(records) >= 4 and np.mean(right) > 0.8
    assert kind == "best_worst" or all(right)  # what led to a right answer is right
    assert len(step_pairs(records, how="first_error", margin=0.5)) == len(records)  # what train-prm learns from
    assert cli.main(["label", model, str(tmp_path / "none.jsonl"), *TREE, *more, "--tree.min-edits", "99"]) == 2


def test_the_tree_of_med_s3_and_its_look_back(model, careless, tmp_path):
    labels = []
    for back in ("0", "1"):
        out = tmp_path / f"{back}.jsonl"
        more = ["--labels", "q", "--tree.rule", "med_s3", "--tree.look-back", back]
        assert cli.main(["label", model, str(out), *TREE, *more]) == 0
        labels.append([one.labels for one in read_step_data(out)])
    plain, lowered = labels
    pairs = [(a, b) for x, y in zip(plain, lowered, strict=True) for a, b in zip(x, y, strict=True) if a is not None]
    assert all(0 <= b <= a + 1e-6 <= 1 + 1e-6 for a, b in pairs) and any(b < a - 1e-3 for a, b in pairs)


def test_edit_distance():
    assert [edit_distance(*x) for x in (("", ""), ("", "abc"), ("kitten", "sitting"), ("flaw", "lawn"))] == [0, 3, 3, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "q"], "this --method has no labels 'q'; it has soft, hard, vstar"),
        (["--method", "tree", "--labels", "vstar"], "has no labels 'vstar'; it has soft, hard, q, quality, best_worst"),
        (["--method", "tree", "--tree.scorer", "nowhere"], "no scorer 'nowhere'"),
        (["--method", "tree", "--tree.simulations", "5000"], "must stay below"),
        (["--method", "tree", "--tree.width", "0"], "must be at least 1"),
        (["--method", "adaptive", "--pilot", "8"], "--pilot is 8; it must be less than --rollouts, which is 6"),
        (["--method", "tree", "--tree.look-back", "-1"], "--tree.look-back is -1"),
        (["--method", "tree", "--tree.min-edits", "-1"], "--tree.min-edits is -1; it must be at least 0"),
    ],
)
def test_bad_options_of_labels(model, more, message, tmp_path, capsys):
    assert cli.main(["label", model, str(tmp_path / "labels.jsonl"), *LABEL, *more]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_tree_is_not_valued_by_what_gives_no_chances(model, tmp_path, capsys):
    prm = save_reward_model(model, tmp_path / "prm", "bradley_terry", 1)
    assert cli.main(["label", model, str(tmp_path / "labels.jsonl"), *TREE, "--tree.scorer", prm]) == 2
    assert "whose scores (score) are not probabilities" in capsys.readouterr().err


def test_nothing_to_label(model, tmp_path, capsys):
    """A model that knows nothing is never right."""
    words = ["label", model, str(tmp_path / "labels.jsonl"), *SMALL[:-2], "--rollouts", "2", "--chunk", "4"]
    assert cli.main(words) == 2
    assert "all correct or all wrong" in capsys.readouterr().err and not list(tmp_path.iterdir())
