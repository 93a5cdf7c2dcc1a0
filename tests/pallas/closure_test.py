import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from prm_jax import rl
from prm_jax.pallas import TokenStatistics, linear_logprob_loss, linear_lse_and_target
from prm_jax.pallas.linear_logprob import tile
from tests.pallas.backend_contract import call, error, problem

ROWS, LENGTH, WIDTH, VOCAB = 5, 7, 8, 29


def sequences(seed=0, dtype=jnp.float32):
    """Hidden [B, T, D], head [V, D], tokens [B, T], mask [B, T], aux of sequences and tokens, bias [V]."""
    hidden, head, tokens, bias = problem(ROWS * LENGTH, WIDTH, VOCAB, seed=seed, dtype=dtype)
    mask = jnp.arange(LENGTH) < jnp.array([7, 3, 0, 5, 1])[:, None]
    keys = jax.random.split(jax.random.key(seed + 1), 2)
    aux = {
        "reference": jax.random.normal(keys[0], (ROWS, LENGTH)) - 3,
        "advantages": jax.random.normal(keys[1], (ROWS, LENGTH)),
        "outcome": jnp.array([1.0, 0.0, 1.0, 0.0, 1.0]),
        "mask": mask,
    }
    return hidden.reshape(ROWS, LENGTH, WIDTH), head, tokens.reshape(ROWS, LENGTH), mask, aux, bias


def cross_entropy(statistics, aux):
    """The implicit reward model's: its weights close inside a sequence."""
    rewards = rl.implicit_token_rewards(statistics.logp, aux["reference"], aux["mask"], beta=0.5)
    return rl.outcome_ce_loss(rewards, aux["outcome"], aux["mask"]).total


def surrogate(statistics, aux):
    """Clipped, with an entropy bonus and a z-loss: closes inside a token."""
    loss = rl.clipped_surrogate(statistics.logp, aux["reference"], aux["advantages"], aux["mask"]).total
    extra = 1e-2 * statistics.lse**2 - 0.1 * statistics.entropy
    return loss + jnp.sum(jnp.where(aux["mask"], extra, 0.0))


def composed(loss_fn, hidden, head, tokens, aux, mask, bias=None, **options):
    """The same loss by automatic differentiation of the recomputing primitive."""
    shape = tokens.shape
    lse, target, entropy = linear_lse_and_target(
        hidden.reshape(-1, WIDTH),
        head,
        tokens.reshape(-1),
        **call(mask=mask.reshape(-1), bias=bias, entropy=True, **options),
    )
    statistics = TokenStatistics(*(x.reshape(shape) for x in (target - lse, lse, entropy)))
    return loss_fn(statistics, aux), statistics


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("token_block", [None, 2 * LENGTH])
@pytest.mark.parametrize("loss_fn", [cross_entropy, surrogate])
def test_equals_automatic_differentiation(loss_fn, token_block, compact):
    hidden, head, tokens, mask, aux, bias = sequences()
    options = {"softcap": 6.0, "temperature": 0.7}
    poisoned = jnp.where(mask[..., None], hidden, jnp.nan)

    def ours(hidden, head, bias):
        return linear_logprob_loss(
            hidden,
            head,
            tokens,
            loss_fn,
            aux,
            **call(mask=mask, bias=bias, entropy=True, compact=compact, token_block=token_block, **options),
        )

    def plain(hidden, head, bias):
        return composed(loss_fn, hidden, head, tokens, aux, mask, bias, **options)

    (value, statistics), gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(poisoned, head, bias)
    (value2, statistics2), exact = jax.jit(jax.value_and_grad(plain, (0, 1, 2), has_aux=True))(hidden, head, bias)
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    for a, b in zip((*statistics, *gradients), (*statistics2, *exact), strict=True):
        assert error(a, b) < 1e-5


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("token_block", [None, 8])
def test_flat_tokens_are_rows_of_their_own(token_block, compact):
    hidden, head, tokens, mask, aux, _ = sequences()
    flat = functools.partial(jax.tree.map, lambda x: x.reshape(ROWS * LENGTH, *x.shape[2:]))
    aux = {k: aux[k] for k in ("reference", "advantages", "mask")}
    temperature = jnp.linspace(0.5, 2.0, ROWS * LENGTH)

    def ours(hidden, head):
        return linear_logprob_loss(
            flat(hidden),
            head,
            flat(tokens),
            surrogate,
            flat(aux),
            **call(mask=flat(mask), entropy=True, compact=compact, token_block=token_block, temperature=temperature),
        )

    def plain(hidden, head):
        return composed(surrogate, hidden, head, tokens, aux, mask, temperature=temperature)

    (value, statistics), gradients = jax.value_and_grad(ours, (0, 1), has_aux=True)(hidden, head)
    (value2, statistics2), exact = jax.value_and_grad(plain, (0, 1), has_aux=True)(hidden, head)
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    assert error(statistics.logp, flat(statistics2.logp)) < 1e-5
    assert all(error(a, b) < 1e-5 for a, b in zip(gradients, exact, strict=True))


def test_the_value_without_a_gradient_is_the_same():
    hidden, head, tokens, mask, aux, _ = sequences()

    def ours(hidden, head):
        return linear_logprob_loss(hidden, head, tokens, cross_entropy, aux, **call(mask=mask, token_block=2 * LENGTH))

    plain = jax.jit(ours)(hidden, head)
    with_gradient, _ = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, head)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), with_gradient, plain)


@pytest.mark.parametrize(("which", "products"), [((0, 1), 3), (0, 2), (1, 2)])
def test_three_products_and_fewer_where_something_is_frozen(which, products):
    hidden, head, tokens, mask, aux, _ = sequences()

    def ours(hidden, head):
        return linear_logprob_loss(hidden, head, tokens, cross_entropy, aux, **call(mask=mask, token_block=2 * LENGTH))[
            0
        ]

    assert str(jax.make_jaxpr(jax.grad(ours, which))(hidden, head)).count("dot_general[") == products


def test_no_gradient_through_statistics_and_aux():
    hidden, head, tokens, mask, aux, _ = sequences()

    def through_statistics(hidden, head):
        return linear_logprob_loss(hidden, head, tokens, cross_entropy, aux, mask=mask)[1].logp.sum()

    def through_aux(reference):
        changed = {**aux, "reference": reference}
        return linear_logprob_loss(hidden, head, tokens, cross_entropy, changed, mask=mask)[0]

    gradients = (*jax.grad(through_statistics, (0, 1))(hidden, head), jax.grad(through_aux)(aux["reference"]))
    assert not any(np.any(np.asarray(g)) for g in gradients)


def test_a_factor_outside_scales_the_gradient():
    hidden, head, tokens, mask, aux, _ = sequences()

    def ours(hidden, factor):
        return factor * linear_logprob_loss(hidden, head, tokens, cross_entropy, aux, mask=mask)[0] ** 2

    value, (gradient, by_factor) = jax.value_and_grad(ours, (0, 1))(hidden, 3.0)
    once = jax.grad(lambda h: linear_logprob_loss(h, head, tokens, cross_entropy, aux, mask=mask)[0])(hidden)
    np.testing.assert_allclose(gradient, 6.0 * np.sqrt(value / 3.0) * once, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_factor, value / 3.0, rtol=1e-5)


def test_bfloat16_sums_in_float32():
    hidden, head, tokens, mask, aux, _ = sequences(dtype=jnp.bfloat16)

    def gradient(hidden, head, token_block):
        def ours(hidden, head):
            return linear_logprob_loss(
                hidden, head, tokens, cross_entropy, aux, **call(mask=mask, token_block=token_block)
            )[0]

        return jax.grad(ours, (0, 1))(hidden, head)

    wide = [x.astype(jnp.float32) for x in (hidden, head)]
    exact = jax.grad(lambda h, w: composed(cross_entropy, h, w, tokens, aux, mask)[0], (0, 1))(*wide)
    for rows in (1, 5):
        ours = gradient(hidden, head, rows * LENGTH)
        assert all(g.dtype == jnp.bfloat16 for g in ours)
        assert all(error(a, b) < 1e-2 for a, b in zip(ours, exact, strict=True))


@pytest.mark.parametrize("valid", [0, 4, 5])
def test_work_follows_the_valid_tokens(monkeypatch, valid):
    hidden, head, tokens, _ = problem(16, WIDTH, VOCAB)
    made = []
    plain = tile.logits

    def counted(*args):
        jax.debug.callback(lambda: made.append(1))
        return plain(*args)

    monkeypatch.setattr(tile, "logits", counted)
    mask = jnp.arange(16) % 16 >= 16 - valid

    @jax.jit
    def f(hidden, head, mask):
        def loss(hidden, head):
            return linear_logprob_loss(
                hidden, head, tokens, lambda s, _: s.logp.sum(), **call(mask=mask, compact=True, token_block=4)
            )[0]

        return jax.grad(loss, (0, 1))(hidden, head)

    jax.block_until_ready(f(hidden, head, mask))
    jax.effects_barrier()
    assert len(made) == -(-valid // 4)  # once: the backward pass makes none


@pytest.mark.parametrize("mesh_shape", [(8, 1), (2, 4)])
def test_rows_over_devices(mesh_shape):
    hidden, head, tokens, _ = problem(64, WIDTH, VOCAB)
    hidden, tokens = hidden.reshape(16, 4, WIDTH), tokens.reshape(16, 4)
    aux = {"reference": jnp.zeros((16, 4)), "outcome": jnp.arange(16) % 2.0, "mask": jnp.arange(4) < 3 + 0 * tokens}
    mesh = jax.make_mesh(mesh_shape, ("data", "other"), axis_types=(AxisType.Auto,) * 2)

    def whole(hidden, head, tokens, aux):
        return linear_logprob_loss(hidden, head, tokens, cross_entropy, aux, **call(mask=aux["mask"], compact=True))[0]

    def local(*args):
        return jax.lax.psum(whole(*args), "data")

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P(), P("data"), P("data")), out_specs=P())
    value, gradients = jax.jit(jax.value_and_grad(sharded, (0, 1)))(hidden, head, tokens, aux)
    value2, gradients2 = jax.jit(jax.value_and_grad(whole, (0, 1)))(hidden, head, tokens, aux)
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    assert all(error(a, b) < 1e-5 for a, b in zip(gradients, gradients2, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": jnp.zeros((5, 6), jnp.int32)}, r"tokens must be \[5, 7\] like hidden, found \[5, 6\]"),
        ({"mask": jnp.ones((5,), bool)}, r"mask must be \[5, 7\] like hidden"),
        ({"aux": {"a": jnp.zeros(4)}}, r"aux must hold arrays with 5 rows, found one of shape \(4,\)"),
        ({"hidden": jnp.zeros((8,))}, r"hidden must be \[N, ..., D\]"),
        ({"head": jnp.zeros((29, 9))}, "not logits"),
        ({"token_block": 0}, "must be positive"),
        ({"residual": "logits"}, "linear_logprob_loss cannot use residual='logits'"),
        ({"implementation": "xla_vocab"}, "cannot use implementation='xla_vocab': a closed loss"),
        ({"tokens": jnp.full((5, 7), 29)}, r"tokens must be in \[0, 29\), found 29 at \[0, 0\]"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    hidden, head, tokens, mask, aux, _ = sequences()
    arguments = {"hidden": hidden, "head": head, "tokens": tokens, "aux": aux, "mask": mask, **change}
    with pytest.raises(ValueError, match=message):
        linear_logprob_loss(**call(loss_fn=cross_entropy, **arguments))
