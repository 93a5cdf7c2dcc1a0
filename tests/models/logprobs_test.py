import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import token_logprobs, token_logprobs_and_entropy
from prm_jax.models.transformer import head_matrix, hidden_states
from tests import compiled

from . import numpy_transformer
from .transformer_test import FAMILIES, LLAMA, TOKENS, noisy

MASK = np.random.default_rng(1).random(TOKENS.shape) < 0.6


def dense(config, params, tokens, temperature=1.0):
    """(log-probs, entropies) through the whole [B, T, V] array; entry 0 is 0."""
    hidden = hidden_states(config, params, tokens)[:, :-1]
    scores = jnp.einsum("btd,vd->btv", hidden, head_matrix(config, params)) / temperature
    table = jax.nn.log_softmax(scores)
    logp = jnp.take_along_axis(table, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -(jnp.exp(table) * table).sum(-1)
    return [jnp.pad(x, ((0, 0), (1, 0))) for x in (logp, entropy)]


@pytest.mark.parametrize("family", FAMILIES)
def test_entry_t_is_the_log_prob_of_token_t_given_those_before(family):
    config, params = FAMILIES[family], noisy(FAMILIES[family])
    found = token_logprobs(config, params, TOKENS)
    assert found.dtype == jnp.float32
    for row, tokens in enumerate(TOKENS):
        table = numpy_transformer.log_softmax(config, params, tokens)
        expected = [0.0] + [table[t - 1, tokens[t]] for t in range(1, len(tokens))]
        np.testing.assert_allclose(found[row], expected, atol=5e-5)


@pytest.mark.parametrize("temperature", [0.7, np.array([0.5, 1.0, 2.0], np.float32)])
def test_temperature_mask_and_entropy_against_the_dense_form(temperature):
    params = noisy(LLAMA)
    wide = np.reshape(temperature, (-1, 1, 1))
    logp, entropy = dense(LLAMA, params, TOKENS, wide)
    found = token_logprobs_and_entropy(LLAMA, params, TOKENS, jnp.asarray(MASK), temperature=temperature)
    scored = MASK & (np.arange(TOKENS.shape[1]) > 0)
    np.testing.assert_allclose(found[0], np.where(scored, logp, 0.0), atol=2e-5)
    np.testing.assert_allclose(found[1], np.where(scored, entropy, 0.0), atol=2e-5)
    alone = token_logprobs(LLAMA, params, TOKENS, jnp.asarray(MASK), temperature=temperature)
    np.testing.assert_allclose(alone, found[0], atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradients_of_every_parameter_against_the_dense_form(family):
    config, params = FAMILIES[family], noisy(FAMILIES[family])
    weights = np.random.default_rng(2).normal(size=(2, *TOKENS.shape)).astype(np.float32) * MASK

    def loss(statistics, params):
        return sum((w * x).sum() for w, x in zip(weights, statistics(params), strict=True))

    def ours(p):
        return token_logprobs_and_entropy(config, p, TOKENS, jnp.asarray(MASK))

    expected = jax.jit(jax.grad(lambda p: loss(lambda p: dense(config, p, TOKENS), p)))(params)
    found = jax.jit(jax.grad(lambda p: loss(ours, p)))(params)
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))


def test_packed_rows_score_like_their_segments():
    params = noisy(LLAMA)
    packed = np.concatenate([TOKENS[0, :4], TOKENS[1, :5]])[None]
    segments = jnp.array([[1] * 4 + [2] * 5])
    score = compiled.token_logprobs
    found = score(LLAMA, params, packed, segment_ids=segments)[0]
    first, second = score(LLAMA, params, TOKENS[:1, :4])[0], score(LLAMA, params, TOKENS[1:2, :5])[0]
    np.testing.assert_allclose(found, np.concatenate([first, second]), atol=1e-5)
    assert found[4] == 0.0  # what begins a segment is predicted by nothing


@pytest.mark.parametrize("start", [0, 1, 4, 9])
def test_start_skips_columns_and_changes_no_others(start):
    params = noisy(LLAMA)
    mask = jnp.asarray(MASK & (np.arange(9) >= start))
    whole = token_logprobs(LLAMA, params, TOKENS, mask)
    np.testing.assert_allclose(token_logprobs(LLAMA, params, TOKENS, mask, start=start), whole, atol=1e-6)


def test_a_row_of_one_token_scores_zero():
    found = token_logprobs_and_entropy(LLAMA, noisy(LLAMA), TOKENS[:, :1])
    assert all(x.shape == (3, 1) and x.dtype == jnp.float32 and not x.any() for x in found)


def test_nothing_scored_gives_zeros_and_no_gradient():
    params = noisy(LLAMA)
    nothing = jnp.zeros(TOKENS.shape, bool)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: token_logprobs(LLAMA, p, TOKENS, nothing).sum()))(params)
    assert value == 0.0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_equal_parameters_give_equal_bits():
    """Also when one of the two is differentiated: an implicit reward starts at 0 exactly."""
    params = noisy(LLAMA)
    other = jax.tree.map(jnp.copy, params)

    @jax.jit
    def rewards(policy, reference):
        reference_logp = token_logprobs(LLAMA, reference, TOKENS, jnp.asarray(MASK))

        def loss(p):
            logp = token_logprobs(LLAMA, p, TOKENS, jnp.asarray(MASK))
            return logp.sum(), logp

        gradient, logp = jax.grad(loss, has_aux=True)(policy)
        return logp - reference_logp, gradient

    difference, gradient = rewards(params, other)
    assert not np.asarray(difference).any()
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_no_array_over_rows_and_vocabulary_in_the_compiled_gradient():
    config = dataclasses.replace(LLAMA, vocab_size=8209)
    params = jax.eval_shape(lambda: noisy(config))
    tokens = jax.ShapeDtypeStruct((8, 129), jnp.int32)

    def loss(p, t):
        return token_logprobs(config, p, t).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
    rows = 8 * 128
    assert f"{rows},8209" not in compiled.as_text() and f"8209,{rows}" not in compiled.as_text()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < rows * 8209 * 4


def test_a_mask_of_another_shape_or_kind_is_refused():
    params = noisy(LLAMA)
    with pytest.raises(ValueError, match=r"mask must be bool \[3, 9\], found float32\[3, 9\]"):
        token_logprobs(LLAMA, params, TOKENS, jnp.ones(TOKENS.shape))
    with pytest.raises(ValueError, match=r"found bool\[3, 8\]"):
        token_logprobs(LLAMA, params, TOKENS, jnp.ones((3, 8), bool))
