"""Weights of samplers: against a loop, worked numbers, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl

B, T = 6, 9


def arrays(seed=0, scale=0.5):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (B, T)).astype(np.float32)
    behaviour = (old + scale * rng.normal(size=(B, T))).astype(np.float32)
    mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    mask[2, 1] = False  # a hole: a token that was given
    mask[4] = False
    return old, behaviour, mask


def loop(old, behaviour, mask, level, low, high, action):
    """Weights, tokens kept, and the four metrics, token by token."""
    weights, kept = np.zeros((B, T)), np.zeros((B, T), bool)
    kl = largest = changed = count = 0.0
    for b in range(B):
        ratios = {t: float(np.clip(old[b, t] - behaviour[b, t], -1e9, 1e9)) for t in range(T) if mask[b, t]}
        for t, ratio in ratios.items():
            if level == "sequence":
                ratio = sum(ratios.values())
            elif level == "geometric":
                ratio = sum(ratios.values()) / len(ratios)
            weight = np.exp(np.clip(ratio, -20, 20))
            outside = weight > high or (low is not None and weight < low)
            kept[b, t] = not (outside and action == "mask")
            if action == "mask":
                weights[b, t] = 0.0 if outside else weight
            else:
                weights[b, t] = min(max(weight, low or 0.0), high)
            own = ratios[t]
            kl += np.exp(own) - 1 - own
            largest, changed, count = max(largest, abs(own)), changed + outside, count + 1
    w = weights[mask]
    return weights, kept, {
        "mismatch_kl": kl / count, "mismatch_max": largest, "weights_bounded": changed / count,
        "effective_samples": w.sum() ** 2 / (len(w) * (w**2).sum()),
    }  # fmt: skip


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("action", ["truncate", "mask"])
@pytest.mark.parametrize("low", [None, 0.6])
def test_weights_equal_a_loop(level, action, low):
    given = arrays()
    options = {"level": level, "low": low, "high": 1.5, "action": action}
    expected = loop(*given, **options)
    weights, kept, sums = jax.jit(lambda *x: rl.sampler_weights(*x, **options))(*given)
    np.testing.assert_allclose(weights, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept, expected[1])
    for name, value in rl.mismatch_metrics(sums).items():
        np.testing.assert_allclose(value, expected[2][name], rtol=1e-4, err_msg=name)


def test_worked_numbers():
    old, behaviour = jnp.log(jnp.array([[0.5, 0.2]])), jnp.log(jnp.array([[0.2, 0.5]]))
    mask = jnp.ones((1, 2), bool)
    weights, _, _ = rl.sampler_weights(old, behaviour, mask)
    np.testing.assert_allclose(weights, [[2.0, 0.4]], rtol=1e-6)
    weights, _, _ = rl.sampler_weights(old, behaviour, mask, level="sequence")
    np.testing.assert_allclose(weights, [[1.0, 1.0]], rtol=1e-6)
    weights, kept, _ = rl.sampler_weights(old, behaviour, mask, action="mask", low=0.5, high=3.0)
    np.testing.assert_allclose(weights, [[2.5, 0.0]], rtol=1e-6)
    assert kept.tolist() == [[True, False]]


def test_a_sequence_product_is_clamped_and_unknown_log_probabilities_count_as_one():
    old, behaviour = np.full((1, 4), 0.0, np.float32), np.full((1, 4), -15.0, np.float32)
    weights, _, sums = rl.sampler_weights(old, behaviour, np.ones((1, 4), bool), level="sequence", high=np.inf)
    np.testing.assert_allclose(weights, np.full((1, 4), np.exp(20.0)), rtol=1e-5)
    assert rl.mismatch_metrics(sums)["mismatch_max"] == 15.0
    behaviour[0, :2] = np.nan
    weights, _, sums = rl.sampler_weights(old, behaviour, np.ones((1, 4), bool))
    assert weights.tolist() == [[1.0, 1.0, 2.0, 2.0]]
    assert np.isfinite(rl.mismatch_metrics(sums)["mismatch_kl"])


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_nothing_selected_garbage_and_gradients(level):
    old, behaviour, mask = arrays()
    weights, kept, sums = rl.sampler_weights(old, behaviour, np.zeros_like(mask), level=level)
    assert not weights.any() and not kept.any()
    assert [float(x) for x in rl.mismatch_metrics(sums).values()] == [0.0] * 4
    expected = rl.sampler_weights(old, behaviour, mask, level=level)
    poisoned = np.where(mask, old, np.inf), np.where(mask, behaviour, np.nan)
    found = rl.sampler_weights(*poisoned, mask, level=level)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    gradient = jax.grad(lambda x: rl.sampler_weights(x, behaviour, mask, level=level)[0].sum())(jnp.asarray(old))
    assert not gradient.any()
    half = rl.sampler_weights(jnp.asarray(old, jnp.bfloat16), behaviour, mask, level=level)[0]
    assert half.dtype == jnp.float32


def test_metrics_of_pieces_are_those_of_the_batch():
    old, behaviour, mask = arrays()
    whole = rl.sampler_weights(old, behaviour, mask)[2]
    parts = [rl.sampler_weights(old[i : i + 2], behaviour[i : i + 2], mask[i : i + 2])[2] for i in (0, 2, 4)]
    joined = {name: jnp.concatenate([part[name] for part in parts]) for name in whole}
    for a, b in zip(rl.mismatch_metrics(joined).values(), rl.mismatch_metrics(whole).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_equal_probabilities_change_nothing():
    old, _, mask = arrays()
    weights, kept, sums = rl.sampler_weights(old, old, mask, action="mask", low=0.999, high=1.001)
    np.testing.assert_array_equal(weights, mask)
    np.testing.assert_array_equal(kept, mask)
    assert [float(x) for x in rl.mismatch_metrics(sums).values()] == [0.0, 0.0, 0.0, 1.0]


def test_unknown_options():
    old, behaviour, mask = arrays()
    with pytest.raises(ValueError, match="level='row'"):
        rl.sampler_weights(old, behaviour, mask, level="row")
    with pytest.raises(ValueError, match="action='drop'"):
        rl.sampler_weights(old, behaviour, mask, action="drop")
