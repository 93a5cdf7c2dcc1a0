"""What kinds make of their data: imitation of chosen solutions, stated confidences, weights by rollouts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax import cli
from prm_jax.data.step_data import StepRecord, write_step_data
from prm_jax.errors import UserError
from prm_jax.models import load_weights
from prm_jax.prm import load
from prm_jax.prm.kinds import BradleyTerry, Imitation, Value
from prm_jax.prm.reward_model_options import POLICY_LAYOUT, BaseOptions, OptimizerOptions
from prm_jax.prm.rows import Shape, build_rows, collate
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec, Weights


def solution(outcome, group="g", name="r", **more):
    return StepRecord("1?", ("ax", "ay"), more.pop("labels", None), outcome, group, name, more)


def test_imitation_chooses_and_weighs():
    records = [solution(1.0, name="a"), solution(0.0, name="b"), solution(None, name="c")]
    assert [(r.id, r.outcome) for r in Imitation().select_records(records)] == [("a", 1.0)]
    weighted = Imitation(imitate="advantage", temperature=0.5).select_records(records)
    ratio = weighted[1].outcome / weighted[0].outcome
    assert [r.id for r in weighted] == ["a", "b"] and ratio == pytest.approx(np.exp(-1 / 0.5), rel=1e-5)
    candidates = [solution(None, group=g, name=f"{g}{s}", score=s) for g, s in [("p", 0.2), ("p", 0.9), ("q", 0.5)]]
    best = Imitation(imitate="best_of_n", threshold=0.05)
    assert [r.id for r in best.select_records(candidates)] == ["p0.9"]  # q has no candidate above its mean
    with pytest.raises(UserError, match="nothing to imitate: none of 1 solutions has an outcome above 1/2"):
        Imitation().select_records(records[1:2])
    with pytest.raises(UserError, match="0.9 above its problem's mean"):
        dataclasses.replace(best, threshold=0.9).select_records(candidates)


def test_imitation_scores_by_likelihood_and_leaves_a_policy(model_path, records, tmp_path):
    write_step_data(tmp_path / "data.jsonl", records)
    run = tmp_path / "run"
    words = [
        "train-prm", "--data.path", str(tmp_path / "data.jsonl"), "--model.path", str(model_path), "--prm.kind",
        "imitation", "--text.separator", "", "--train.learning-rate", "0.02", "--train.epochs", "12",
        "--train.batch-size", "8", "--data.eval-fraction", "0", "--data.max-length", "32", "--run-dir", str(run),
        "--no-plots",
    ]  # fmt: skip
    assert cli.main(words) == 0
    scored = score_solutions(load(run / "model"), records)
    right = [one.response for one in scored if one.record.outcome]
    wrong = [one.response for one in scored if not one.record.outcome]
    assert np.mean(right) > np.mean(wrong) + 0.3 and max(right) < 0
    before = load_weights(model_path)[1]
    after = load_weights(run / "model")[1]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert "prm_head.safetensors" not in {path.name for path in (run / "model").iterdir()}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["prm/loss"] for line in metrics if "prm/loss" in line]
    assert losses[-1] < 0.5 * losses[0]


def test_the_score_of_imitation_is_the_mean_log_probability_of_a_step(config, params, tokenizer, records):
    prm = PRM(Spec(Imitation(), config), Weights(params, {}, {}), tokenizer, POLICY_LAYOUT)
    rows, _ = build_rows(records[:3], tokenizer, POLICY_LAYOUT, max_length=64)
    batch = collate(rows, Shape(3, 32, 3, 3), packed=False)
    logp = prm.spec.kind.forward(prm.spec, prm.weights, batch)
    for row, one in enumerate(score_solutions(prm, records[:3])):
        for step, score in enumerate(one.steps):
            own = np.asarray(logp)[row][batch.slots[row] == row * 3 + step]
            assert score == pytest.approx(float(own.mean()), rel=1e-4)


def test_confidence_is_preferred_where_it_is_right():
    kind = BradleyTerry(confidence=" c{score}", high="9", low="1")
    made = kind.select_records([solution(1.0, name="a"), solution(0.0, name="b"), solution(None, name="c")])
    assert [(r.group, r.steps[-1], r.outcome) for r in made] == [
        ("a", "ay c9", 1.0), ("a", "ay c1", 0.0), ("b", "ay c9", 0.0), ("b", "ay c1", 1.0),
    ]  # fmt: skip
    options = (BaseOptions(), OptimizerOptions())
    assert "has no {score}" in BradleyTerry(confidence="sure").problems(*options)[0]
    assert "both '9'" in dataclasses.replace(kind, low="9").problems(*options)[0]


def test_labels_weigh_by_their_rollouts(tokenizer, config):
    records = [solution(1.0, labels=(0.5, 1.0), total=[4, None], name="a"), solution(1.0, labels=(0.5, 1.0), name="b")]
    rows, _ = build_rows(records, tokenizer, POLICY_LAYOUT, max_length=64)
    batch = collate(rows, Shape(2, 32, 2, 2), packed=False)
    assert batch.label_counts.tolist() == [[4, 0], [0, 0]]
    kind, spec = Value(weigh=True, variance_floor=0.1), Spec(Value(), config)
    found = jnp.asarray([[[0.3], [1.0]], [[-0.2], [0.4]]])
    loss = kind.training_loss(spec, found, batch, jnp.float32(0))
    variance = np.asarray([[0.25 / 4, 0.0], [0.0, 0.0]])
    weights = 1 / np.maximum(variance, 0.01)
    weights *= 4 / weights.sum()
    error = np.asarray(optax.sigmoid_binary_cross_entropy(found[..., 0], jnp.asarray(batch.labels)))
    assert float(loss.total) == pytest.approx((weights * error).sum(), rel=1e-5) and float(loss.weight) == 4
    plain = Value().training_loss(spec, found, batch, jnp.float32(0))
    alike = Value(weigh=True, variance_floor=10.0).training_loss(spec, found, batch, jnp.float32(0))
    assert float(alike.total) == pytest.approx(float(plain.total), rel=1e-5)  # above all variances: equal weights
    assert Value(value="quantile", weigh=True).problems(BaseOptions(), OptimizerOptions())
