"""The model's log-probs with the head's work in proportion to the scored tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.models import ModelConfig, init_params, token_logprobs, token_logprobs_and_entropy


def test_compacted_log_probs_of_a_model_and_their_gradient_are_the_same():
    config = ModelConfig(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
    )
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 100), 0, 37)
    mask = jnp.arange(100) < jnp.array([0, 3, 100, 50, 7, 1, 20, 30])[:, None]

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, compact):
        def loss(params):
            logp = token_logprobs(config, params, tokens, mask, compact=compact)
            return jnp.sum(logp**2), logp

        return jax.value_and_grad(loss, has_aux=True)(params)

    for a, b in zip(jax.tree.leaves(run(params, True)), jax.tree.leaves(run(params, False)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    logp, entropy = token_logprobs_and_entropy(config, params, tokens, mask, compact=True)
    np.testing.assert_allclose(logp, run(params, False)[0][1], atol=1e-5)
    assert not np.any(np.asarray(entropy)[~np.asarray(mask)])
