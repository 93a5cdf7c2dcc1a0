"""A run with adapters, from the data to scores: what is saved scores as the model that was trained; ensembles too."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prm_jax import cli
from prm_jax.models.qtensor import is_quantized
from prm_jax.prm import training as loop_module
from prm_jax.prm.kinds import Implicit, Token, Value
from prm_jax.prm.model import load
from prm_jax.prm.reward_model_options import BaseOptions, DataOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import Shape, build_rows, collate
from prm_jax.prm.score import score_solutions
from prm_jax.prm.train_options import TrainPRMOptions
from prm_jax.prm.training import train


@pytest.fixture
def options(model_path, data_path) -> TrainPRMOptions:
    return TrainPRMOptions(
        data=DataOptions(path=str(data_path), eval_fraction=0.0),
        text=TextLayout(separator=" "),
        model=BaseOptions(path=str(model_path), lora_rank=4),
        train=OptimizerOptions(learning_rate=2e-2, batch_size=24, epochs=12),
        plots=False,
    )


@pytest.fixture
def trained(monkeypatch):
    """What training hands over to be saved, adapters still apart."""
    kept = {}
    real = loop_module.finished

    def finished(spec, weights, tokenizer, layout):
        kept.update(spec=spec, weights=weights, tokenizer=tokenizer, layout=layout)
        return real(spec, weights, tokenizer, layout)

    monkeypatch.setattr(loop_module, "finished", finished)
    return kept


def step_scores(kept, records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(what the forward pass gives, scores [R, S], mask [R, S]) of the model as it was trained."""
    rows, _ = build_rows(records, kept["tokenizer"], kept["layout"], max_length=256)
    batch = collate(rows, Shape(len(rows), 32, len(rows), 3), packed=False)
    spec, kind = kept["spec"], kept["spec"].kind
    found = jax.jit(lambda weights: kind.forward(spec, weights, batch))(kept["weights"])
    return np.asarray(found), np.asarray(kind.scores(spec, found, batch)), batch.step_mask


@pytest.mark.parametrize(
    ("kind", "quantize", "rounding"),
    [(Token(), "none", "int8"), (Implicit(reference="base"), "int8", "none")],
    ids=["token_rounded_adapters", "implicit_rounded_base"],
)
def test_a_saved_run_with_adapters_scores_as_it_was_trained(
    kind, quantize, rounding, options, trained, data_path, records, tmp_path
):
    model, learning = (
        dataclasses.replace(options.model, quantize=quantize),
        dataclasses.replace(options.train, rounding=rounding),
    )
    options = dataclasses.replace(options, prm=kind, model=model, train=learning)
    summary = train(options, tmp_path / "run")
    assert is_quantized(trained["weights"].model) == (quantize != "none")
    assert summary["steps"] == 12 and "lora_a" in str(jax.tree.structure(trained["weights"].model))
    _, expected, mask = step_scores(trained, records)
    assert expected[mask].std() > 1e-3

    model = tmp_path / "run" / "model"
    called = score_solutions(load(model), records)
    assert cli.main(["score", str(model), str(data_path), "--out", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    for row, (one, line) in enumerate(zip(called, lines, strict=True)):
        np.testing.assert_allclose(one.steps, expected[row][mask[row]], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(line["scores"], one.steps, rtol=1e-6)
        assert line["score"] == pytest.approx(one.response, rel=1e-6) and line["id"] == one.record.id


def test_an_ensemble_is_trained_saved_and_scores_its_lower_bound(options, trained, records, tmp_path):
    kind = Value(value="ensemble", members=3, head_layers=2, pessimism=1.5)
    train(dataclasses.replace(options, prm=kind), tmp_path / "run")
    logits, expected, mask = step_scores(trained, records)
    chances = 1 / (1 + np.exp(-logits))
    assert chances.shape[-1] == 3 and chances.std(-1)[mask].min() > 0  # members stay apart
    bound = np.maximum(chances.mean(-1) - 1.5 * chances.std(-1), 0)
    np.testing.assert_allclose(expected[mask], bound[mask], rtol=1e-4, atol=1e-5)
    labels = np.concatenate([one.labels for one in records]) > 0.5
    assert bound[mask][labels].mean() > bound[mask][~labels].mean() + 0.1

    prm = load(tmp_path / "run" / "model")
    for row, one in enumerate(score_solutions(prm, records)):
        np.testing.assert_allclose(one.steps, bound[row][mask[row]], rtol=1e-3, atol=1e-5)
    bold = dataclasses.replace(prm.spec, kind=dataclasses.replace(kind, pessimism=0.0))
    for row, one in enumerate(score_solutions(dataclasses.replace(prm, spec=bold), records)):
        np.testing.assert_allclose(one.steps, chances.mean(-1)[row][mask[row]], rtol=1e-3, atol=1e-5)
