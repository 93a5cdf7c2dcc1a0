"""Experts during training: metrics by hand, the same in pieces, and a loss that spreads tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.models import ExpertLoad, init_params
from prm_jax.prime.abstract import abstract_step
from prm_jax.prime.batch import Frozen
from prm_jax.prime.step import init_state, make_step
from prm_jax.prime.warm_start import nll_loss
from prm_jax.runs.expert_balance import expert_metrics, with_balance
from tests.models.checkpoints import CONFIGS, FAMILIES
from tests.prime.conftest import make_batch, replaced, setup_of

CHOSEN = jnp.array([[6.0, 2.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
LOAD = ExpertLoad(CHOSEN, jnp.full((2, 4), 1.0), jnp.full(2, 4.0))  # 4 tokens with 2 experts each


def test_metrics_and_term_by_hand():
    loss = rl.Loss(jnp.float32(3.0), jnp.float32(2.0), {})
    found = with_balance(loss, LOAD, 0.5)
    # Probabilities are even, so that both balances are 4 * sum(share) / 4 = 1.
    assert (float(found.total), float(found.weight)) == (3.0 + 0.5 * 1.0 * 2.0, 2.0)
    metrics = expert_metrics(found.summary())
    assert metrics.keys() == {
        "expert_balance", "expert_load", "expert_entropy", "expert_load/0", "expert_load/1",
    }  # fmt: skip
    assert (metrics["expert_load/0"], metrics["expert_load/1"], metrics["expert_load"]) == (3.0, 1.0, 3.0)
    skewed = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4)
    np.testing.assert_allclose(metrics["expert_entropy"], (skewed + 1) / 2, rtol=1e-6)
    assert with_balance(loss, None, 0.5) is loss and expert_metrics({"kl": 1.0}) == {"kl": 1.0}


def test_metrics_of_pieces_are_those_of_the_whole():
    loss = rl.Loss(jnp.float32(1.0), jnp.float32(1.0), {})
    pieces = [
        with_balance(loss, ExpertLoad(x, x, jnp.full(2, x[0].sum() / 2)), 0.0)
        for x in (CHOSEN, jnp.flip(CHOSEN[:, :2].repeat(2, 1), 1))
    ]
    together = expert_metrics(jax.tree.map(jnp.add, *pieces).summary())
    chosen = np.asarray(CHOSEN) + np.asarray(CHOSEN)[:, [1, 1, 0, 0]]
    np.testing.assert_allclose(together["expert_load/0"], 4 * chosen[0].max() / chosen[0].sum(), rtol=1e-6)


def test_the_loss_spreads_tokens_of_both_models(options):
    """In pieces; a PRM that equals its reference still gives rewards of exactly 0."""
    config = dataclasses.replace(FAMILIES["mixtral"], vocab_size=18, num_layers=1)
    params = init_params(config, jax.random.key(0))
    router = params["layers"]["mlp"]["router"]
    router["kernel"] = 8 * router["kernel"]  # sure of itself, and uneven
    part = {"microbatches": 2, "balance_coef": 20.0}
    setup = setup_of(replaced(options, prm=part, policy=part), config, params)
    frozen, batch, found = Frozen(params, params), make_batch(), []
    step, state = make_step(setup), init_state(setup, frozen, jax.random.key(0))
    for number in range(11):
        state, metrics, rewards = step(state, frozen, batch)
        found.append(jax.device_get(metrics))
        assert number or not rewards.any()
    for name in ("policy/expert_balance", "prm/expert_balance"):
        before, after = found[0][name], found[-1][name]
        assert before > 1.1 and after < 1 + 0.7 * (before - 1)
        assert found[0][name.replace("balance", "load/0")] == found[0][name.replace("balance", "load")] > 1


def test_the_loss_of_the_warm_start_has_the_term():
    config = dataclasses.replace(FAMILIES["mixtral"], vocab_size=18, num_layers=1)
    params, tokens = init_params(config, jax.random.key(0)), jax.random.randint(jax.random.key(1), (2, 6), 0, 18)

    @jax.jit
    def both(params):
        return [nll_loss(config, params, tokens, tokens > 3, balance_coef=coef) for coef in (0.0, 0.5)]

    plain, balanced = both(params)
    term = 0.5 * float(plain.summary()["expert_balance"]) * float((tokens > 3).sum())
    np.testing.assert_allclose(balanced.total - plain.total, term, rtol=1e-4)


@pytest.mark.parametrize("name", ["policy", "prm", "sft"])
def test_coefficients_for_dense_models_are_refused(options, name):
    changed = replaced(options, **{name: {"balance_coef": 0.1}})
    with pytest.raises(UserError, match=f"--{name}.balance-coef 0.1 .* 'llama' has none"):
        abstract_step(changed, CONFIGS["llama"])
