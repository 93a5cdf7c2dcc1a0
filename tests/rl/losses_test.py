"""Policy and critic losses: published numbers, exact accumulation, and what their gradients really are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def vectors():
    case = golden.load("prime")["policy_loss"]
    given = {k: np.array(v) for k, v in case["in"].items()}
    given["mask"] = given["mask"] == 1
    return given, case["out"]


def surrogate(given, **options):
    return rl.clipped_surrogate(given["new_logp"], given["old_logp"], given["adv"], given["mask"], **options)


@pytest.mark.parametrize(
    "aggregation", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
)
def test_published_policy_loss(vectors, aggregation):
    given, out = vectors
    plain = surrogate(given, aggregation=aggregation)
    np.testing.assert_allclose(plain.mean(), out["agg_clip0.2"][aggregation], **CLOSE)
    dual = surrogate(given, aggregation=aggregation, dual_clip=3.0, clip_high=0.28)
    np.testing.assert_allclose(dual.mean(), out["dualclip3_low0.2_high0.28_agg"][aggregation], **CLOSE)
    metrics = plain.summary()
    np.testing.assert_allclose(metrics["clip_fraction"], out["clipfrac"], **CLOSE)
    np.testing.assert_allclose(metrics["approx_kl"], out["ppo_kl"], **CLOSE)
    np.testing.assert_allclose(surrogate(given).mean(), out["prime_clip0.2_token_mean"], **CLOSE)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_published_kl(vectors, estimator):
    given, out = vectors
    loss = rl.kl_penalty(given["new_logp"], given["ref_logp"], given["mask"], estimator=estimator)
    np.testing.assert_allclose(loss.mean(), out[f"kl_{estimator}_mean"], **CLOSE)


@pytest.mark.parametrize(
    "aggregation", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
)
def test_parts_add_up_to_the_large_batch(vectors, aggregation):
    """Sums and weights of uneven micro-batches, divided once, give the loss, gradient and metrics of the whole."""
    given, _ = vectors

    @jax.jit
    def gradient_and_loss(logp, rows):
        def total(logp):
            part = {**given, "new_logp": logp, "mask": given["mask"] & rows[:, None]}
            result = surrogate(part, aggregation=aggregation)
            return result.total, result

        return jax.grad(total, has_aux=True)(logp)

    logp = jnp.asarray(given["new_logp"], jnp.float32)
    whole_gradient, whole = gradient_and_loss(logp, np.ones(8, bool))
    parts = [gradient_and_loss(logp, np.isin(np.arange(8), rows)) for rows in ([0], [1, 2, 3, 4], [5, 6, 7])]
    gradient, summed = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    np.testing.assert_allclose(summed.mean(), whole.mean(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, whole_gradient, rtol=1e-6, atol=1e-8)
    for name, value in whole.summary().items():
        np.testing.assert_allclose(summed.summary()[name], value, rtol=1e-6, atol=1e-7)


def test_a_loss_is_a_pytree_of_sums():
    loss = rl.Loss(jnp.float32(6), jnp.float32(3), {"kl": rl.Mean(jnp.float32(2), jnp.float32(4))})
    assert float(loss.mean()) == 2 and float(loss.summary()["kl"]) == 0.5
    assert len(jax.tree.leaves(loss)) == 4
    assert float(rl.Loss(jnp.float32(0), jnp.float32(0)).mean()) == 0
    with pytest.raises(AttributeError):
        loss.total = 1  # frozen


def test_gradient_of_the_first_step_is_the_policy_gradient():
    rng = np.random.default_rng(0)
    logp, adv, mask = (rng.normal(size=(3, 4)) for _ in range(3))
    mask = mask > 0
    gradient = jax.grad(lambda x: rl.clipped_surrogate(x, x, adv, mask).total)(jnp.asarray(logp, jnp.float32))
    np.testing.assert_allclose(gradient, np.where(mask, -adv, 0), rtol=1e-6)


def test_clipping_stops_gradients_on_the_right_side():
    old = jnp.zeros((1, 4))
    logp = jnp.log(jnp.array([[1.5, 0.5, 1.5, 0.5]]))
    adv = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    gradient = jax.grad(lambda x: rl.clipped_surrogate(x, old, adv, jnp.ones((1, 4), bool)).total)(logp)
    np.testing.assert_array_equal(gradient != 0, [[False, True, True, False]])
    loss = rl.clipped_surrogate(logp, old, adv, jnp.ones((1, 4), bool))
    np.testing.assert_allclose(loss.total, -1.2 - 0.5 + 1.5 + 0.8, rtol=1e-6)
    assert float(loss.summary()["clip_fraction"]) == 0.5
    # A dual clip bounds what a negative advantage can cost.
    one = np.ones((1, 1))
    far = rl.clipped_surrogate(3 * one, 0 * one, -one, one, dual_clip=3.0)
    assert float(far.total) == 3.0 and float(far.summary()["dual_clip_fraction"]) == 1.0


def test_an_extreme_ratio_stays_finite():
    logp, old = jnp.array([[500.0, -500.0]]), jnp.zeros((1, 2))
    for sign in (1.0, -1.0):
        value, gradient = jax.value_and_grad(
            lambda x, sign=sign: rl.clipped_surrogate(x, old, sign * jnp.ones((1, 2)), jnp.ones((1, 2), bool)).total
        )(logp)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_sequence_ratio_of_equal_tokens_is_the_token_ratio():
    rng = np.random.default_rng(0)
    old, adv, mask = rng.normal(size=(3, 5)), np.repeat(rng.normal(size=(3, 1)), 5, 1), np.ones((3, 5), bool)
    logp = old + np.array([[0.1], [-0.3], [0.5]])
    results = [rl.clipped_surrogate(logp, old, adv, mask, ratio=ratio).total for ratio in ("token", "sequence")]
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_gradients_of_the_kl_estimators():
    """Their exact means over a distribution: k2 is KL(pi||ref), k3 the reverse KL, k1 nothing."""
    rng = np.random.default_rng(0)
    logits, ref_logits = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))
    ref_logp = jax.nn.log_softmax(ref_logits)
    p, q = jax.nn.softmax(logits), jax.nn.softmax(ref_logits)

    def mean_gradient(estimator):
        """E_pi of the gradient of the loss on one sampled token, every token weighted by its probability."""

        def loss(x):
            logp, mask = jax.nn.log_softmax(x)[None], jnp.ones((1, 6), bool)
            terms = rl.token_kl(logp, ref_logp[None], mask, estimator=estimator)
            return jnp.sum(p * terms[0])

        return jax.grad(loss)(logits)

    forward = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - ref_logp)))(logits)
    reverse = jax.grad(lambda x: -jnp.sum(q * jax.nn.log_softmax(x)))(logits)
    np.testing.assert_allclose(mean_gradient("k1"), 0, atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k2"), forward, atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k3"), reverse, atol=1e-6)
    # As estimates of the value, k1 and k3 have the KL for mean.
    exact = float(jnp.sum(p * (jnp.log(p) - ref_logp)))
    for estimator in ("k1", "k3"):
        terms = rl.token_kl(jnp.log(p)[None], ref_logp[None], jnp.ones((1, 6), bool), estimator=estimator)
        np.testing.assert_allclose(jnp.sum(p * terms[0]), exact, rtol=1e-5)


def test_entropy_bonus_lowers_the_loss():
    loss = rl.entropy_bonus(np.array([[1.0, 2.0, 9.0]]), np.array([[True, True, False]]))
    assert float(loss.mean()) == -1.5 and float(loss.summary()["entropy"]) == 1.5


def test_value_losses_by_hand():
    case = golden.load("search")["losses"]
    given = case["tanh_mse"]
    mask = np.array([given["mask"]]) == 1
    loss = rl.value_loss(np.array([given["logit"]]), np.array([given["q"]]), mask, kind="tanh_mse")
    np.testing.assert_allclose(loss.total / (loss.weight + 1e-3), given["loss"], **CLOSE)  # AlphaMath divides so
    given = case["bce"]
    loss = rl.value_loss(np.array([given["logit"]]), np.array([given["target"]]), np.ones((1, 3), bool), kind="bce")
    np.testing.assert_allclose(loss.mean(), given["loss"], **CLOSE)


def test_values_inside_the_range_are_not_counted_as_clipped():
    """Old + clip(v - old) differs from v by rounding; a range that nothing leaves must report no clipping."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(64, 64)).astype(np.float32)
    value = (old + rng.uniform(-0.1, 0.1, old.shape)).astype(np.float32)
    target, mask = rng.normal(size=old.shape), np.ones(old.shape, bool)
    loss = rl.value_loss(value, target, mask, old_values=old, clip=0.2)
    assert float(loss.summary()["clip_fraction"]) == 0.0
    np.testing.assert_array_equal(loss.total, rl.value_loss(value, target, mask).total)


def test_clipped_values_take_the_larger_error():
    value, old, target = np.array([[2.0, 0.1]]), np.array([[0.0, 0.0]]), np.array([[2.0, 0.0]])
    mask = np.ones((1, 2), bool)
    loss = rl.value_loss(value, target, mask, old_values=old, clip=0.2)
    np.testing.assert_allclose(loss.total, (0.2 - 2.0) ** 2 + 0.1**2, rtol=1e-6)
    assert float(loss.summary()["clip_fraction"]) == 0.5


def test_bad_input():
    x, mask = np.ones((1, 2)), np.ones((1, 2), bool)
    with pytest.raises(ValueError, match="old_values not given"):
        rl.value_loss(x, x, mask, clip=0.2)
    with pytest.raises(ValueError, match="clip needs old_values and kind='mse'; found clip=0.2, kind='bce'"):
        rl.value_loss(x, x, mask, clip=0.2, old_values=x, kind="bce")
    with pytest.raises(ValueError, match="aggregation='mean'"):
        rl.aggregate_tokens(x, mask, aggregation="mean")
    with pytest.raises(ValueError, match="ratio='word'"):
        rl.clipped_surrogate(x, x, x, mask, ratio="word")
    with pytest.raises(ValueError, match="estimator='k4'"):
        rl.kl_penalty(x, x, mask, estimator="k4")
    with pytest.raises(AssertionError):
        rl.clipped_surrogate(x, x, np.ones(1), mask)
