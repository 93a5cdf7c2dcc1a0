import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models.sampling import draw, make_sampling, row_uniforms, sample, truncate


def _uniforms(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def _oracle_truncate(p: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Sorts; without ties this is the definition."""
    p = p.astype(np.float64)
    keep = np.ones(p.size, bool)
    order = np.argsort(-p)
    if top_k:
        keep[order[top_k:]] = False
    if top_p < 1:
        q = np.where(keep, p, 0) / p[keep].sum()
        before = np.cumsum(q[order]) - q[order]
        keep[order[before >= top_p]] = False
    if min_p:
        keep &= p >= min_p * p.max()
    return keep


@pytest.mark.parametrize("vocab", [1, 2, 17, 300, 1000])
@pytest.mark.parametrize(
    "top_k,top_p,min_p",
    [(3, 1.0, 0.0), (0, 0.5, 0.0), (0, 0.97, 0.0), (0, 1.0, 0.2), (20, 0.8, 0.05), (10**6, 1.0, 1.0), (1, 0.01, 0)],
)
def test_truncation_matches_sorting(vocab, top_k, top_p, min_p):
    logits = np.random.default_rng(vocab).normal(size=(6, vocab)).astype(np.float32) * 3
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    kept = truncate(jnp.asarray(weights), make_sampling(top_k=top_k, top_p=top_p, min_p=min_p))
    for row in range(6):
        expected = _oracle_truncate(weights[row], top_k, top_p, min_p)
        np.testing.assert_array_equal(np.asarray(kept[row]), np.where(expected, weights[row], 0))


def test_truncation_keeps_ties_and_at_least_one_token():
    weights = jnp.array([[1.0, 0.5, 0.5, 0.5, 0.1], [1.0, 0.0, 0.0, 0.0, 0.0]])
    kept = truncate(weights, make_sampling(top_k=2))
    np.testing.assert_array_equal(kept, [[1.0, 0.5, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    kept = truncate(weights, make_sampling(top_p=1e-6, min_p=1.0))
    np.testing.assert_array_equal(kept, [[1, 0, 0, 0, 0]] * 2)


@pytest.mark.parametrize("vocab", [5, 512, 513, 5000])
def test_draw_inverts_the_cumulative_distribution(vocab):
    rng = np.random.default_rng(vocab)
    weights = rng.gamma(0.3, size=(64, vocab)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.3] = 0
    weights[:, 0] += 1e-3
    uniforms = rng.random((64, 2)).astype(np.float32)
    tokens = np.asarray(draw(jnp.asarray(weights), jnp.asarray(uniforms)))
    for w, (u, v), token in zip(weights.astype(np.float64), uniforms, tokens, strict=True):
        if vocab > 512:
            sums = np.pad(w, (0, -vocab % 256)).reshape(-1, 256).sum(1)
            block = int(np.argmax(np.cumsum(sums) > u * sums.sum()))
            assert token // 256 == block
            w, u, token = w[block * 256 : (block + 1) * 256], v, token % 256
        cumulative = np.cumsum(w)
        assert w[token] > 0
        assert cumulative[token] >= u * cumulative[-1] * (1 - 1e-5)
        assert cumulative[token] - w[token] <= u * cumulative[-1] * (1 + 1e-5)


def test_draw_never_takes_a_token_of_weight_zero():
    weights = jnp.zeros((3, 700)).at[:, 650].set(1e-20)
    for u in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        np.testing.assert_array_equal(draw(weights, jnp.full((3, 2), u)), [650] * 3)


def test_draw_has_the_right_frequencies():
    p = np.array([0.5, 0.25, 0.0, 0.15, 0.1])
    uniforms = _uniforms(0, (20000, 2))
    tokens = draw(jnp.broadcast_to(jnp.asarray(p, jnp.float32), (20000, 5)), uniforms)
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / 20000, p, atol=0.012)


def test_blocks_have_the_right_frequencies():
    weights = jnp.ones((1, 2000)).at[0, 1500].set(2000.0)
    uniforms = _uniforms(1, (4000, 2))
    tokens = np.asarray(draw(jnp.broadcast_to(weights, (4000, 2000)), uniforms))
    assert abs((tokens == 1500).mean() - 0.5) < 0.03
    assert abs((tokens[tokens != 1500] < 1000).mean() - 0.5) < 0.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_gives_the_log_probability_before_truncation(temperature, dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 30)) * 4, dtype)
    uniforms = _uniforms(2, (8, 2))
    tokens, logp, _ = jax.jit(sample)(logits, uniforms, make_sampling(temperature=temperature, top_k=3, top_p=0.9))
    expected = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    np.testing.assert_allclose(logp, expected[jnp.arange(8), tokens], rtol=1e-5, atol=1e-6)
    assert logp.dtype == jnp.float32 and tokens.dtype == jnp.int32
    rank = (logits > logits[jnp.arange(8), tokens][:, None]).sum(axis=-1)
    assert (rank < 3).all()


def test_greedy_takes_the_most_probable_token_at_temperature_one():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 9)), jnp.float32)
    tokens, logp, _ = sample(logits, jnp.zeros((4, 2)), make_sampling(temperature=0, top_k=2))
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits).max(axis=-1), rtol=1e-6)


def test_banned_tokens_are_never_drawn():
    logits = jnp.full((50, 6), -jnp.inf).at[:, 4].set(0.0).at[:, 2].set(-1.0)
    tokens, logp, _ = sample(logits, _uniforms(3, (50, 2)), make_sampling())
    assert set(np.asarray(tokens).tolist()) == {2, 4}
    assert np.isfinite(logp).all()


def test_changing_a_value_does_not_compile_again():
    traces = []

    @jax.jit
    def run(logits, uniforms, sampling):
        traces.append(0)
        return sample(logits, uniforms, sampling)

    for temperature, top_k, top_p, min_p in [(1.0, 5, 0.9, 0.1), (0.7, 3, 0.5, 0.2)]:
        options = make_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        run(jnp.zeros((2, 8)), jnp.zeros((2, 2)), options)
    assert len(traces) == 1


def test_randomness_depends_on_the_row_only():
    uniforms = jax.jit(row_uniforms, static_argnames=("samples", "steps"))
    whole = uniforms(jax.random.key(4), jnp.array([3, 7, 5]), samples=4, steps=6)
    assert whole.shape == (6, 12, 2)
    part = uniforms(jax.random.key(4), jnp.array([7]), samples=2, steps=3)
    np.testing.assert_array_equal(part, whole[:3, 4:6])
    assert np.unique(np.asarray(whole)).size > 0.99 * whole.size
    assert not np.array_equal(whole, uniforms(jax.random.key(5), jnp.array([3, 7, 5]), samples=4, steps=6))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        make_sampling(**options)
