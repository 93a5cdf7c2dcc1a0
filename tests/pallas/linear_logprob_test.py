import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.pallas import LogprobOptions, linear_logprob, linear_lse_and_target
from prm_jax.pallas.linear_logprob import tile, tiles
from tests.pallas.backend_contract import BackendContract, call, error, oracle, problem

XLA = ("xla_token", "xla_vocab")


class TestXlaToken(BackendContract):
    implementation = "xla_token"


class TestXlaVocab(BackendContract):
    implementation = "xla_vocab"


def _loss(hidden, head, tokens, **options):
    logp, lse = linear_logprob(hidden, head, tokens, **call(**options))
    return jnp.sum(logp) + 0.1 * jnp.sum(lse * lse)


def _largest_array(hlo: str) -> int:
    shapes = re.findall(r"(?:f32|bf16|f16|pred|s32)\[([\d,]+)\]", hlo)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("implementation", XLA)
@pytest.mark.parametrize("differentiated", [False, True])
def test_no_array_of_all_logits(implementation, differentiated):
    count, width, vocab = 1024, 16, 4099
    hidden, head, tokens, _ = problem(count, width, vocab)
    blocks = {"xla_token": (64, None), "xla_vocab": (None, 256)}[implementation]

    def f(hidden, head):
        options = {"implementation": implementation, "token_block": blocks[0], "vocab_block": blocks[1]}
        return _loss(hidden, head, tokens, **options)

    compiled = jax.jit(jax.grad(f, (0, 1)) if differentiated else f).lower(hidden, head).compile()
    tile = (blocks[0] or count) * (blocks[1] or vocab)
    assert _largest_array(compiled.as_text()) <= 1.1 * tile < count * vocab / 10
    # A few tiles, and the sums of the gradients.
    allowed = 4 * (4 * tile + (3 * (count + vocab) * width if differentiated else 0))
    assert compiled.memory_analysis().temp_size_in_bytes <= allowed


def _products(f, *args) -> int:
    return str(jax.make_jaxpr(f)(*args)).count("dot_general[")


@pytest.mark.parametrize("implementation", XLA)
def test_unused_gradients_are_not_computed(implementation):
    hidden, head, tokens, _ = problem(6, 8, 11)

    def f(hidden, head):
        return _loss(hidden, head, tokens, implementation=implementation)

    both = _products(jax.grad(f, (0, 1)), hidden, head)
    assert both == 4  # the logits, the logits again, two gradients
    assert _products(jax.grad(f, 0), hidden, head) == 3
    assert _products(jax.grad(f, 1), hidden, head) == 3
    frozen = jax.jit(lambda h: f(h, jax.lax.stop_gradient(head)))
    assert _products(jax.grad(frozen), hidden) == 3


@pytest.mark.parametrize("implementation", XLA)
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_kept_logits_save_a_product_and_give_the_same_numbers(implementation, softcap):
    hidden, head, tokens, _ = problem(13, 8, 29)
    mask, cotangents = jnp.arange(13) % 4 > 0, jax.random.normal(jax.random.key(9), (3, 13))
    options = {"mask": mask, "temperature": jnp.linspace(0.5, 2.0, 13), "softcap": softcap}

    def f(hidden, head, **more):
        out = linear_lse_and_target(
            hidden,
            head,
            tokens,
            **call(entropy=True, implementation=implementation, token_block=5, vocab_block=7, **more, **options),
        )
        return sum(jnp.sum(a * b) for a, b in zip(out, cotangents, strict=True))

    _, exact = oracle(hidden, head, tokens, cotangents=cotangents, **options)
    for compact in (False, True):
        kept = jax.grad(lambda h, w: f(h, w, residual="logits", compact=compact), (0, 1))  # noqa: B023
        assert _products(kept, hidden, head) == 3
        for gradient, expected in zip(jax.jit(kept)(hidden, head), exact[:2], strict=True):
            assert error(gradient, expected) < 1e-5
    narrow = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    _, exact = oracle(*narrow, tokens, cotangents=cotangents, **options)
    for gradient, expected in zip(kept(*narrow), exact[:2], strict=True):
        assert error(gradient, expected) < 2e-2


@pytest.mark.parametrize("valid", [0, 1, 16, 17, 50])
def test_work_follows_the_valid_tokens(monkeypatch, valid):
    hidden, head, tokens, _ = problem(64, 8, 32)
    tiles_made = []
    plain = tile.logits

    def counted(*args):
        jax.debug.callback(lambda: tiles_made.append(1))
        return plain(*args)

    monkeypatch.setattr(tile, "logits", counted)

    @jax.jit
    def f(hidden, head, mask):
        options = {"mask": mask, "compact": True, "token_block": 8, "vocab_block": 16, "implementation": "xla_vocab"}
        return jax.value_and_grad(lambda h, w: _loss(h, w, tokens, **options), (0, 1))(hidden, head)

    jax.block_until_ready(f(hidden, head, jnp.arange(64) % 64 >= 64 - valid))
    jax.effects_barrier()
    assert len(tiles_made) == 2 * 2 * -(-valid // 8)  # forward and backward, two blocks of the vocabulary


@pytest.mark.parametrize("head_layout", ["vd", "dv"])
def test_head_gradient_in_pieces(monkeypatch, head_layout):
    """On a CPU the head's gradient is added piece by piece; pieces need not divide the vocabulary."""
    hidden, head, tokens, _ = problem(12, 8, 29)
    head = head if head_layout == "vd" else head.T

    def gradients():
        def loss(hidden, head):
            logp, lse = linear_logprob(
                hidden, head, tokens, **call(implementation="xla_token", head_layout=head_layout, token_block=5)
            )
            return jnp.sum(logp + 0.1 * lse**2)

        return jax.grad(loss, (0, 1))(hidden, head)

    whole = gradients()
    for columns in (10, 7, 28, 1):
        monkeypatch.setattr(tiles, "_HEAD_COLUMNS_CPU", columns)
        for found, expected in zip(gradients(), whole, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradient_through_jit_remat_and_scan():
    hidden, head, tokens, _ = problem(6, 8, 11)
    plain = jax.grad(lambda h: _loss(h, head, tokens))(hidden)
    rematerialised = jax.jit(jax.grad(jax.checkpoint(lambda h: _loss(h, head, tokens))))(hidden)

    def scanned(h):
        return jax.lax.scan(lambda total, one: (total + _loss(one, head, tokens), None), 0.0, h[None])[0]

    np.testing.assert_allclose(rematerialised, plain, atol=1e-6)
    np.testing.assert_allclose(jax.grad(scanned)(hidden), plain, atol=1e-6)


def test_the_same_bits_differentiated_or_not_and_with_the_entropy_or_without():
    hidden, head, tokens, _ = problem(64, 16, 515)

    def f(hidden, head, entropy):
        return linear_lse_and_target(hidden, head, tokens, **call(entropy=entropy))

    def with_gradient(hidden, head, entropy):
        def loss(hidden, head):
            out = f(hidden, head, entropy)
            return sum(jnp.sum(x * x) for x in out), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)[0][1]

    expected = jax.jit(f, static_argnums=2)(hidden, head, False)
    for g, entropy in ((f, True), (with_gradient, False), (with_gradient, True)):
        got = jax.jit(g, static_argnums=2)(hidden, head, entropy)
        jax.tree.map(np.testing.assert_array_equal, got[:2], expected)


@pytest.mark.parametrize("mesh_shape", [(8, 1), (2, 4)])
@pytest.mark.parametrize("implementation", XLA)
def test_sharded_equals_one_device(implementation, mesh_shape):
    hidden, head, tokens, _ = problem(64, 16, 40)
    options = {"implementation": implementation, "token_block": 16, "vocab_block": 16}
    f = jax.jit(jax.value_and_grad(lambda h, w, y: _loss(h, w, y, **options), (0, 1)))
    value, gradients = f(hidden, head, tokens)
    mesh = jax.make_mesh(mesh_shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("tensor"))
    placed = jax.device_put((hidden, head, tokens), (rows, columns, rows))
    value2, gradients2 = f(*placed)
    np.testing.assert_allclose(value2, value, rtol=1e-5)
    for a, b in zip(gradients2, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("mesh_shape", [(8, 1), (2, 4)])
@pytest.mark.parametrize(("implementation", "compact"), [("xla_token", False), ("xla_vocab", True)])
def test_token_parallel_under_shard_map(implementation, mesh_shape, check_vma, compact):
    hidden, head, tokens, _ = problem(64, 16, 40)
    mask = jnp.arange(64) % 5 < 3 if compact else None
    options = {"implementation": implementation, "token_block": 4, "vocab_block": 16, "compact": compact}
    mesh = jax.make_mesh(mesh_shape, ("data", "other"), axis_types=(AxisType.Auto,) * 2)

    def local(h, w, y, mask):
        return jax.lax.psum(_loss(h, w, y, mask=mask, **options), "data")

    specs = (P("data"), P(), P("data"), P("data"))
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    value, gradients = jax.jit(jax.value_and_grad(sharded, (0, 1)))(hidden, head, tokens, mask)
    value2, gradients2 = jax.value_and_grad(lambda h, w: _loss(h, w, tokens, mask=mask, **options), (0, 1))(
        hidden, head
    )
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    for a, b in zip(gradients, gradients2, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_temperature_as_a_scalar_an_array_and_none():
    hidden, head, tokens, _ = problem(6, 8, 11)
    scalar = linear_logprob(hidden, head, tokens, temperature=0.5)
    array = linear_logprob(hidden, head, tokens, temperature=jnp.full((6,), 0.5))
    scaled = linear_logprob(2.0 * hidden, head, tokens)
    jax.tree.map(np.testing.assert_array_equal, scalar, array)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scalar, scaled)


def test_one_trace_for_equal_shapes():
    traces = []

    @jax.jit
    def f(hidden, head, tokens):
        traces.append(1)
        return linear_logprob(hidden, head, tokens)[0]

    for seed in (0, 1):
        f(*problem(6, 8, 11, seed=seed)[:3])
    assert len(traces) == 1


H, W, Y = jnp.zeros((4, 8)), jnp.zeros((11, 8)), jnp.zeros((4,), jnp.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "triton"}, "unknown implementation 'triton'; known: xla_vocab, xla_token, mosaic_tpu"),
        ({"implementation": "mosaic_tpu"}, r"'mosaic_tpu' needs a TPU, found cpu \(cpu\)"),
        ({"implementation": "mosaic_gpu"}, "'mosaic_gpu' needs a GPU, found cpu"),
        ({"head": jnp.zeros((8, 11)), "head_layout": "dv", "bias": jnp.zeros((8,))}, r"bias must be \[V=11\]"),
        ({"head_layout": "dv"}, r"head \[D, V\] with one D"),
        ({"head_layout": "v"}, "head_layout must be one of 'vd', 'dv', found 'v'"),
        ({"residual": "all"}, "residual must be one of 'recompute', 'logits', found 'all'"),
        ({"hidden": jnp.zeros((4, 8), jnp.int32)}, "hidden must be one of float32, bfloat16, float16, found int32"),
        ({"head": jnp.zeros((0, 8))}, "at least one token"),
        ({"tokens": jnp.array([0, 11, 3, -1])}, r"tokens must be in \[0, 11\), found 11 at \[1\] \(2 in all\)"),
        ({"hidden": jnp.zeros((4, 11))}, "not logits"),
        ({"hidden": jnp.zeros((2, 2, 8))}, r"hidden must be \[T, D\]"),
        ({"tokens": jnp.zeros((5,), jnp.int32)}, r"tokens must be integers \[T=4\], found int32\[5\]"),
        ({"tokens": jnp.zeros((4,))}, "found float32"),
        ({"mask": jnp.ones((4,))}, "mask must be bool"),
        ({"bias": jnp.zeros((8,))}, r"bias must be \[V=11\], found \[8\]"),
        ({"head": jnp.zeros((11, 8), jnp.int8)}, "head must be one of float32, bfloat16, float16, found int8"),
        ({"temperature": jnp.ones((3,))}, r"found shape \(3,\)"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"softcap": -1.0}, "softcap must be positive"),
        ({"token_block": 0}, "token_block must be positive"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    arguments = {"hidden": H, "head": W, "tokens": Y, **change}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**call(**arguments))


def test_implementation_as_an_argument_and_entropy_as_the_last_result():
    alone = linear_logprob(H, W, Y, implementation="xla_token")
    full = linear_logprob(H, W, Y, options=LogprobOptions(implementation="xla_token", entropy=True))
    jax.tree.map(np.testing.assert_array_equal, alone, full[:2])
    np.testing.assert_allclose(full[2], np.log(11), rtol=1e-6)


def test_masked_token_ids_are_ignored():
    logp, _ = linear_logprob(H, W, jnp.array([0, 11, 3, -1]), mask=jnp.array([True, False, True, False]))
    np.testing.assert_allclose(logp, np.where([True, False, True, False], -np.log(11), 0.0), rtol=1e-6)
