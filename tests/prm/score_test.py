"""Scoring: batches, inputs, pages; the command and the Python call agree."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from prm_jax import cli
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.prm import calibrate, page
from prm_jax.prm.forward import init_head
from prm_jax.prm.inputs import check_cover, read_solutions
from prm_jax.prm.kinds import GPM, Implicit, Token
from prm_jax.prm.model import save
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.score import PRM, Scored, batches, rows_to_score, score_solutions
from prm_jax.prm.spec import Spec, Weights


@pytest.fixture(scope="module")
def prm(config, params, tokenizer):
    """A token model whose head is random, so that its scores differ."""
    spec = Spec(Token(), config)
    head = init_head(spec, jax.random.key(5), num_outputs=2, random=True)
    return PRM(spec, Weights(params, head, {}), tokenizer, TextLayout(separator=" "))


@pytest.fixture(scope="module")
def saved(prm, tmp_path_factory):
    path = tmp_path_factory.mktemp("prm") / "model"
    save(path, prm)
    return path


def test_scores_do_not_depend_on_their_batch(prm, records):
    together = score_solutions(prm, records[:6], max_tokens=4096)
    alone = score_solutions(prm, records[:6], max_tokens=32)
    for a, b in zip(together, alone, strict=True):
        assert a.record is b.record and len(a.steps) == len(a.record.steps)
        np.testing.assert_allclose(a.steps, b.steps, rtol=1e-5)
        assert a.response == pytest.approx(min(a.steps))
    assert len({round(x, 6) for one in together for x in one.steps}) > 6
    summed = score_solutions(prm, records[:6], cumulative=True, aggregate="last")
    np.testing.assert_allclose(summed[0].steps, np.cumsum(together[0].steps), rtol=1e-5)
    assert summed[0].response == pytest.approx(sum(together[0].steps), rel=1e-5)


def test_a_batch_has_a_bounded_number_of_tokens(prm, records):
    rows = rows_to_score(prm, records)
    found = list(batches(rows, max_tokens=128))
    assert sorted(row.record for _, members in found for row in members) == list(range(len(records)))
    assert all(batch.tokens.size <= 128 for batch, _ in found) and len({b.tokens.shape for b, _ in found}) <= 2


def test_long_solutions_are_refused_or_skipped(prm, records):
    long = dataclasses.replace(records[0], steps=("a" * 300,), labels=None, id="long one")
    with pytest.raises(UserError, match="long one: this solution is longer than the 256 tokens"):
        rows_to_score(prm, [records[0], long])
    assert len(rows_to_score(prm, [records[0], long], skip_long=True)) == 1


def test_scores_that_are_not_finite_are_refused(prm, records):
    head = jax.tree.map(lambda x: x * np.nan, prm.weights.head)
    broken = dataclasses.replace(prm, weights=dataclasses.replace(prm.weights, head=head))
    with pytest.raises(UserError, match="the score of step 0 is nan"):
        score_solutions(broken, records[:6], max_tokens=4096)
    with pytest.raises(UserError, match="unknown aggregate 'median'"):
        score_solutions(prm, records[:2], aggregate="median")


def test_preferences_may_be_cyclic():
    angles = np.asarray([0, 2, 4]) * np.pi / 3  # each is preferred to the one before it
    extras = [
        {"embedding": np.asarray([np.cos(a), np.sin(a)], np.float32), "scales": np.ones(1, np.float32)} for a in angles
    ]
    found = GPM(embedding=2).response_scores(np.asarray([9, 9, 9, 7.0]), [*extras, extras[0]], ["p", "p", "p", "q"])
    np.testing.assert_allclose(found, [0, 0, 0, 7], atol=1e-5)
    assert GPM().whole_groups


def test_the_command_writes_lines_and_a_page(saved, data_path, prm, records, tmp_path, capsys):
    assert cli.main(["score", str(saved), str(data_path), "--out", str(tmp_path / "out")]) == 0
    assert f"{len(records)} solutions scored" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    for line, one in zip(lines, score_solutions(prm, records), strict=True):
        np.testing.assert_allclose(line["scores"], one.steps, rtol=1e-5)
        assert line["id"] == one.record.id and line["labels"] == list(one.record.labels)
    text = (tmp_path / "out" / "scores.html").read_text()
    assert text.count("<article>") == len(records) and "<script" not in text


def test_an_interrupted_call_continues_where_it_stopped(saved, data_path, tmp_path, monkeypatch, capsys):
    from prm_jax.prm import score_log

    words = ["score", str(saved), str(data_path), "--max-tokens", "64"]
    assert cli.main([*words, "--out", str(tmp_path / "whole")]) == 0
    real, scored = score_log.raw_scores, []

    def stopping(prm, rows, records, *, max_tokens):
        for number, part in enumerate(real(prm, rows, records, max_tokens=max_tokens)):
            if number == 3:
                raise KeyboardInterrupt
            scored.extend(part)
            yield part

    monkeypatch.setattr(score_log, "raw_scores", stopping)
    out = tmp_path / "parts"
    assert cli.main([*words, "--out", str(out)]) == 130
    first, partial = len(scored), out / "scores.partial.jsonl"
    assert 0 < first < 24 and len(partial.read_text().splitlines()) == first + 1
    with open(partial, "a") as file:
        file.write('{"index": 3, "sco')  # a line that was cut off
    monkeypatch.setattr(score_log, "raw_scores", real)
    capsys.readouterr()
    assert cli.main([*words, "--out", str(out)]) == 0
    assert f"{first} of 24 solutions" in capsys.readouterr().err and not partial.exists()
    for name in ("scores.jsonl", "scores.html"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_partial_scores_of_something_else_are_not_used(prm, saved, records, tmp_path):
    from prm_jax.prm.reward_model_options import ScoringOptions
    from prm_jax.prm.score_log import ScoreLog, identity_of

    path, options = tmp_path / "p.jsonl", ScoringOptions()
    mine = identity_of(str(saved), options, records)
    with ScoreLog(path, mine, resume=True) as log:
        log.add({2: (np.asarray([0.1, 0.7], np.float32), {"embedding": np.ones(2, np.float32)})})
    with ScoreLog(path, mine, resume=True) as log:
        assert log.known[2][0].tolist() == np.asarray([0.1, 0.7], np.float32).tolist()
        assert log.known[2][1]["embedding"].tolist() == [1, 1]
    half = ScoringOptions(dtype="bfloat16")
    for other in (identity_of(str(saved), options, records[1:]), identity_of(str(saved), half, records)):
        assert other != mine
        with ScoreLog(tmp_path / "q.jsonl", other, resume=True) as log:
            assert not log.known
    with ScoreLog(path, mine, resume=False) as log:
        assert not log.known


def test_pages_are_named_after_the_model_and_piped_progress_is_shown(saved, data_path, tmp_path, capsys):
    assert page.model_name("runs/mine/model") == "mine/model" and page.model_name("Qwen/PRM-7B") == "PRM-7B"
    assert cli.main(["score", str(saved), str(data_path), "--out", str(tmp_path)]) == 0
    title = f"<title>{saved.parent.name}/model on {data_path.name}</title>"
    assert title in (tmp_path / "scores.html").read_text()
    assert f"{data_path.name}: 24 of 24 solutions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shown", "-1"], "--shown is -1"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--convention", "card"], "--convention card is for public checkpoints"),
        (["--split", "newlin"], "did you mean 'newline'"),
        (["--out", "FILE"], "cannot write to --out"),
    ],
)
def test_bad_options_are_refused_before_scoring(words, message, saved, data_path, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    words = [str(file) if word == "FILE" else word for word in words]
    assert cli.main(["score", str(saved), str(data_path), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def test_an_aggregate_of_probabilities_is_refused_before_scoring(prm, records, monkeypatch):
    monkeypatch.setattr("prm_jax.prm.score.raw_scores", None)
    implicit = dataclasses.replace(prm, spec=dataclasses.replace(prm.spec, kind=Implicit()))
    with pytest.raises(UserError, match="'prod' is for probabilities: choose --aggregate min"):
        score_solutions(implicit, records, aggregate="prod")


def test_scores_become_chances_by_a_fitted_map(saved, data_path, tmp_path):
    results = {"subsets": {"bare": {"calibration": {"steps": {"skipped": "few"}}},
                           "mine": {"calibration": {"steps": {"platt_map": [0.5, 1.0]}}}}}  # fmt: skip
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    assert calibrate.read_map(file) == (0.5, 1.0)
    one = Scored(StepRecord("p", ("a", "b"), None, None, "g", "r"), (0.5, 0.9), 0.5)
    found = calibrate.calibrated([one], (0.5, 1.0), output="probability", how="min")[0]
    expected = 1 / (1 + np.exp(-(0.5 * np.asarray([0.0, np.log(9)]) + 1)))
    np.testing.assert_allclose(found.steps, expected, rtol=1e-6)
    assert found.response == pytest.approx(expected[0], rel=1e-6)
    raw = dataclasses.replace(one, steps=(0.0, -2.0))
    found = calibrate.calibrated([raw], (1.0, 0.0), output="log_ratio", how="last")[0]
    assert found.response == pytest.approx(1 / (1 + np.exp(2)), rel=1e-6)
    with pytest.raises(UserError, match="did you mean 'mine'"):
        calibrate.read_map(file, "mina")
    with pytest.raises(UserError, match="no calibration of step scores"):
        calibrate.read_map(file, "bare")


def test_model_text_cannot_write_html():
    evil = '<img src=x onerror="alert(1)"></pre><script>'
    record = StepRecord(evil, (evil, "fine"), (1.0, None), 0.0, "g", evil)
    text = page.scores_page([Scored(record, (0.9, 0.1), 0.1)], title=evil, output="probability")
    assert not re.search(r"<(img|script)", text) and "&lt;img" in text
    assert "&#10003;" in text and page.colour(1.0, 0, 0.5, 1) == "rgb(110,170,220)"
    assert page.colour(0.5, 0, 0.5, 1) == "rgb(255,255,255)" and page.colour(-9, -1, 0, 1) == "rgb(230,159,100)"


def test_responses_are_cut_into_steps_or_checked(tmp_path):
    file = tmp_path / "responses.jsonl"
    file.write_text(json.dumps({"prompt": "p", "response": "one\ntwo\n", "outcome": 1}) + "\n")
    assert read_solutions(file)[0].steps == ("one\n", "two\n")
    check_cover(["one", "two"], " one\n\ntwo\n", "here")
    for steps, message in ((["one"], "'two' is left"), (["one", "three"], r"here:steps\[1\]: .*expected 'two'")):
        with pytest.raises(UserError, match=message):
            check_cover(steps, "one\ntwo\n", "here")
    file.write_text(json.dumps({"prompt": "p", "response": "one\ntwo", "labels": [1]}) + "\n")
    with pytest.raises(UserError, match="1 labels for 2 steps"):
        read_solutions(file)
    with pytest.raises(UserError, match="cannot read"):
        read_solutions(tmp_path / "missing.jsonl")


def test_the_command_gives_intervals(saved, records, tmp_path, capsys):
    from prm_jax.data.step_data import write_step_data

    write_step_data(tmp_path / "known.jsonl", records[:12])
    write_step_data(tmp_path / "new.jsonl", records[12:])
    known, new = tmp_path / "known", tmp_path / "new"
    assert cli.main(["score", str(saved), str(tmp_path / "known.jsonl"), "--out", str(known)]) == 0
    words = ["score", str(saved), str(tmp_path / "new.jsonl"), "--out", str(new), "--interval", "0.8"]
    assert cli.main(words) == 2 and "belong together" in capsys.readouterr().err
    assert cli.main([*words, "--interval-from", str(known / "scores.jsonl")]) == 0
    for line in (new / "scores.jsonl").read_text().splitlines():
        found = json.loads(line)
        assert len(found["intervals"]) == len(found["scores"])
        assert all(0 <= low <= high <= 1 for low, high in found["intervals"])
