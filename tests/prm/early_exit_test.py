"""Early exits: the staged scores are those of the rule written out, and easy solutions leave early."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl, stats
from prm_jax.errors import UserError
from prm_jax.models import init_params
from prm_jax.prm.kinds import EarlyExit
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.rows import Shape, collate
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec
from tests.prm.kinds_test import learner_for, rows_for, train


@pytest.fixture(scope="module")
def deep(config):
    config = dataclasses.replace(config, num_layers=3)
    return config, init_params(config, jax.random.key(3))


@pytest.fixture(scope="module")
def trained(deep, records, tokenizer):
    """(model, its training losses)."""
    config, params = deep
    learner = learner_for(config, EarlyExit(exits=3, quantile=0.5, prior=0.5))
    rows = rows_for(learner.spec, records, tokenizer)
    state, losses = train(learner, params, rows, 40)
    weights = learner.weights(state.trainable, state.fixed, params)
    return PRM(learner.spec, weights, tokenizer, TextLayout(separator=" ")), losses


@pytest.mark.heavy
def test_stages_give_the_scores_of_the_rule(trained, records, tokenizer):
    prm, losses = trained
    assert losses[-1] < losses[0]
    rows = rows_for(prm.spec, records, tokenizer)
    batch = collate(rows, Shape(len(rows), 32, len(rows), 3))
    found = prm.spec.kind.forward(prm.spec, prm.weights, batch)
    expected = np.asarray(prm.spec.kind.scores(prm.spec, found, batch))
    place = np.asarray(rl.quantile_exit(rl.halting_distribution(found[..., 2]), quantile=0.5))
    place = np.where(batch.step_mask, place, 0).max(-1)
    scored = score_solutions(prm, records)
    for row, one in enumerate(scored):
        np.testing.assert_allclose(one.steps, expected[row, : len(one.steps)], rtol=1e-4)
        assert one.layers == place[row] + 1
    assert scored[0].to_json()["layers"] >= 1
    labels = np.concatenate([one.record.labels for one in scored])
    values = np.concatenate([one.steps for one in scored])
    assert float(stats.roc_auc(values, labels > 0.5, jnp.ones(len(labels), bool))) > 0.9
    assert np.mean([one.layers for one in scored]) < 3  # what a letter says is known early


def test_the_quantile_decides_how_much_is_read(trained, records):
    prm, _ = trained
    layers = []
    for quantile in (0.01, 0.5, 1.0):
        kind = dataclasses.replace(prm.spec.kind, quantile=quantile)
        own = dataclasses.replace(prm, spec=dataclasses.replace(prm.spec, kind=kind))
        layers.append(np.mean([one.layers for one in score_solutions(own, records[:8])]))
    assert layers[0] == 1 and layers[0] <= layers[1] <= layers[2] == 3


def test_a_model_with_fewer_layers_than_exits_is_refused(config):
    with pytest.raises(UserError, match="--prm.exits 3: the model has 1 layers"):
        EarlyExit().init(Spec(EarlyExit(), config), jax.random.key(0))
