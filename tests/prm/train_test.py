"""Whole runs: what they leave, resuming to the same bits, and what they refuse."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from prm_jax import cli
from prm_jax.errors import UserError
from prm_jax.prm import training as loop_module
from prm_jax.prm.kinds import GPM, Armo, Implicit, Token
from prm_jax.prm.model import load
from prm_jax.prm.prepare import prepare
from prm_jax.prm.reward_model_options import BaseOptions, DataOptions, OptimizerOptions, TextLayout
from prm_jax.prm.score import score_solutions
from prm_jax.prm.train_options import TrainPRMOptions, check_options
from prm_jax.prm.training import train
from prm_jax.runs.stopping import DivergedRun, InterruptedRun


@pytest.fixture(scope="module")
def options(model_path, data_path) -> TrainPRMOptions:
    return TrainPRMOptions(
        data=DataOptions(path=str(data_path), eval_fraction=0.3),
        text=TextLayout(separator=" "),
        model=BaseOptions(path=str(model_path)),
        prm=Token(),
        train=OptimizerOptions(learning_rate=1e-2, batch_size=8, microbatches=2, epochs=4),
        save_every=2,
        eval_every=4,
        plots=False,
    )


def files(path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.heavy
def test_a_stopped_run_resumes_to_the_same_bits(options, tmp_path, monkeypatch, records):
    summary = train(options, tmp_path / "whole")
    assert summary["after"]["prm_eval/loss"] < summary["before"]["prm_eval/loss"]
    assert {"prm_eval/step_auc", "prm_eval/pairwise_accuracy"} <= summary["after"].keys()
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["steps"] == summary["steps"] >= 6

    real = loop_module._Job._let_go

    def stop(self, event):
        if event.kind == "step" and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, event)

    monkeypatch.setattr(loop_module._Job, "_let_go", stop)
    with pytest.raises(InterruptedRun, match="SIGTERM after step 3"):
        train(options, tmp_path / "parts")
    monkeypatch.setattr(loop_module._Job, "_let_go", real)
    train(dataclasses.replace(options, eval_every=0), tmp_path / "parts", resume=True)
    assert files(tmp_path / "whole" / "model") == files(tmp_path / "parts" / "model")

    prm = load(tmp_path / "whole" / "model")
    found = score_solutions(prm, records)
    auc = [(s, l) for one in found for s, l in zip(one.steps, one.record.labels, strict=True)]
    assert np.mean([s for s, l in auc if l]) > np.mean([s for s, l in auc if not l]) + 0.2


def test_an_absurd_learning_rate_stops_training_and_can_be_lowered_on_resume(options, tmp_path):
    absurd = dataclasses.replace(options.train, learning_rate=1e30)
    with pytest.raises(DivergedRun, match="Lower --train.learning-rate"):
        train(dataclasses.replace(options, train=absurd, max_bad_steps=1), tmp_path / "run")
    summary = train(options, tmp_path / "run", resume=True)
    assert summary["after"]["prm_eval/loss"] < summary["before"]["prm_eval/loss"]


def test_every_problem_with_options_is_named_at_once():
    bad = TrainPRMOptions(
        prm=GPM(embedding=3),
        train=OptimizerOptions(batch_size=7, microbatches=2, trains="head", balance_coef=0.1),
        model=BaseOptions(lora_rank=4),
    )
    with pytest.raises(UserError) as caught:
        check_options(bad)
    for part in ("--data.path is missing", "--model.path is missing", "--prm.embedding is 3; it must be even",
                 "--train.microbatches 2 must divide", "--model.lora-rank adds adapters",
                 "--train.balance-coef 0.1 needs a model that trains"):  # fmt: skip
        assert part in str(caught.value)
    wide = dataclasses.replace(bad, prm=GPM(temperature=0.0, head_layers=0))
    with pytest.raises(UserError, match="(?s)--prm.head-layers is 0.*--prm.temperature is 0.0; it must be greater"):
        check_options(wide)


def test_a_coefficient_for_the_experts_of_a_dense_model_is_refused(options, tmp_path):
    balanced = dataclasses.replace(options, train=dataclasses.replace(options.train, balance_coef=0.1))
    with pytest.raises(UserError, match="--train.balance-coef 0.1 .* 'llama' has none"):
        train(balanced, tmp_path / "run")


def test_the_best_state_is_kept_and_training_ends_without_progress(options, records, tmp_path):
    some = dataclasses.replace(options, max_steps=5, eval_every=1, best="step_auc", plots=False)
    summary = train(some, tmp_path / "five")
    assert summary["steps"] == 5
    lines = [json.loads(line) for line in (tmp_path / "five" / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["prm_eval/step_auc"] for line in lines if "prm_eval/step_auc" in line}
    best = summary["best"]
    assert best["step_auc"] == pytest.approx(max(found.values()))
    assert best["step"] == min(step for step, value in found.items() if value == max(found.values()))
    still = dataclasses.replace(some, max_steps=0, patience=2, train=dataclasses.replace(some.train, learning_rate=0.0))
    assert train(still, tmp_path / "still")["steps"] == 2
    with pytest.raises(UserError, match="--patience 2 needs --best"):
        check_options(dataclasses.replace(still, best=""))


@pytest.mark.parametrize(
    "kind,message",
    [
        (Armo(verbosity="long"), "'long' is not an objective; there are right, short"),
        (Implicit(reference="base"), "needs|base of adapters"),
        (Implicit(loss="kto_vanilla"), "kto_vanilla"),
    ],
)
def test_kinds_refuse_what_cannot_work(options, kind, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(options, prm=kind), tmp_path / "run")


def test_data_of_an_unknown_format_names_the_nearest(options, tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text(json.dumps({"prompt": "1?", "completions": ["a"]}) + "\n")
    changed = dataclasses.replace(options, data=dataclasses.replace(options.data, path=str(file)))
    with pytest.raises(UserError, match="the nearest is trl, which lacks labels"):
        train(changed, tmp_path / "run")


def test_the_command_reads_a_file_and_words(options, tmp_path, monkeypatch, capsys):
    seen = {}

    def fake(training, path, *, resume):
        seen.update(training=training, path=path, resume=resume)
        return {"after": {"prm_eval/step_auc": 0.5}}

    monkeypatch.setattr(loop_module, "train", fake)
    file = tmp_path / "run.yaml"
    file.write_text("prm:\n  kind: token\ntrain.epochs: 3\n")
    words = ["train-prm", "--config", str(file), "--run-dir", str(tmp_path / "run"), "--prm.head-layers", "2"]
    assert cli.main([*words, "--data.path", "x", "--model.path", "y"]) == 0
    assert seen["training"].prm == Token(head_layers=2) and seen["training"].train.epochs == 3
    assert "step_auc: 0.5000" in capsys.readouterr().out
    assert cli.main(["train-prm", "--prm.kind", "gpm", "--prm.embedding", "6"]) == 0
    assert seen["training"].prm == GPM(embedding=6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prm.bate", "1"], "did you mean --prm.beta"),
        (["--prm.kind", "tokem"], "unknown kind of reward model 'tokem' (--prm.kind): did you mean 'token'"),
        (["--prm.kind", "token", "--prm.beta=1"], "--prm.beta is an option of kind implicit, step_q, but the kind is"),
        (["--prm.no-mask-after-error"], "--prm.mask-after-error is an option of kind token"),
        (["--config", "FILE", "--prm.kind", "value"], "run.yaml: prm.labels is an option of kind token"),
    ],
)
def test_options_of_another_kind_are_refused_by_name(words, message, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("prm:\n  kind: token\n  labels: hard\n")
    assert cli.main(["train-prm", *(str(file) if word == "FILE" else word for word in words)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_help_shows_the_options_of_the_kind(capsys):
    assert cli.main(["train-prm", "--prm.kind", "b_coder", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--prm.advantage-coef" in out and "--prm.beta" not in out
    assert "--train.learning-rate" in out and "--data.neutral" not in out
    assert cli.main(["train-prm", "--help-all"]) == 0 and "--data.neutral" in capsys.readouterr().out


def test_regressions_before_training_are_part_of_a_resumed_run(options, tmp_path):
    """Kind armo: the start of a resumed run is not computed again, but its shape must be known."""
    one = dataclasses.replace(options, prm=Armo(), max_steps=1, data=dataclasses.replace(options.data, eval_fraction=0))
    train(one, tmp_path / "run")
    kernel = load(tmp_path / "run" / "model").weights.fixed["kernel"]
    assert np.abs(kernel).max() > 0
    train(dataclasses.replace(one, max_steps=2), tmp_path / "run", resume=True)
    np.testing.assert_array_equal(load(tmp_path / "run" / "model").weights.fixed["kernel"], kernel)


def test_bad_records_are_refused_or_skipped_and_counted(options, records, tokenizer, tmp_path):
    from prm_jax.data.step_data import write_step_data

    file = tmp_path / "steps.jsonl"
    write_step_data(file, records[:4])
    with open(file, "a") as lines:
        lines.write('{"prompt": "1?", "steps": ["a"], "labels": [2]}\n{"prompt"\n')
    broken = dataclasses.replace(options, data=dataclasses.replace(options.data, path=str(file), eval_fraction=0.0))
    with pytest.raises(UserError, match=r"steps.jsonl:5:labels\[0\]"):
        prepare(broken, tokenizer, limit=256)
    lenient = dataclasses.replace(broken, data=dataclasses.replace(broken.data, skip_bad=True))
    prepared = prepare(lenient, tokenizer, limit=256)
    assert len(prepared.rows) == 4 and prepared.notes["skipped"].startswith("2 bad records; the first is")


def test_records_in_memory_replace_the_data_file(options, records, tmp_path):
    options = dataclasses.replace(
        options, data=DataOptions(eval_fraction=0.0), train=dataclasses.replace(options.train, epochs=1)
    )
    summary = train(options, tmp_path / "run", data=records[:8])
    assert summary["rows"] == 8 and load(tmp_path / "run" / "model").spec.kind == Token()


def test_training_uses_only_what_two_labellers_agree_on(options, records, tokenizer, tmp_path):
    judged = tmp_path / "judged.jsonl"
    # The judge names the same step of every other solution and has not seen the last four.
    lines = [{"id": one.id, "first_error": one.first_error() + i % 2} for i, one in enumerate(records[:-4])]
    judged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = dataclasses.replace(options.data, agree_with=str(judged), eval_fraction=0.0)
    agreeing = dataclasses.replace(options, data=data)
    prepared = prepare(agreeing, tokenizer, limit=256)
    assert [row.outcome for row in prepared.rows] == [one.outcome for one in records[:-4:2]]
    assert prepared.notes["consensus"].startswith("10 of 24 solutions kept, 10 left out because")
    judged.write_text("".join(json.dumps({"id": one.id, "first_error": 7}) + "\n" for one in records))
    with pytest.raises(UserError, match="nothing to learn from: 0 of 24 solutions kept, 24 left out"):
        prepare(agreeing, tokenizer, limit=256)
