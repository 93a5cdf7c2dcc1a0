"""The TPU kernels, interpreted on the CPU, and lowered for TPUs without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.pallas import Target, linear_logprob, linear_lse_and_target
from prm_jax.pallas.linear_logprob import tuning
from prm_jax.pallas.linear_logprob.problem import Inputs, Spec
from prm_jax.pallas.linear_logprob.tuned_blocks import TABLE
from tests.pallas.backend_contract import BackendContract, call, error, oracle, problem

INTERPRETED = Target("tpu", "TPU v5e", interpret=True)


@pytest.mark.slow
class TestMosaicTpu(BackendContract):
    implementation = "mosaic_tpu"
    target = INTERPRETED

    def test_under_vmap(self):
        """Lowers; the interpreter knows no batched kernels."""
        hidden, head, tokens, _ = problem(64, 128, 256)

        def gradient(hidden, tokens):
            options = {"target": Target("tpu", "TPU v5e"), "implementation": "mosaic_tpu"}
            return jax.grad(lambda h: linear_logprob(h, head, tokens, **call(**options))[0].sum())(hidden)

        batched = jax.jit(jax.vmap(gradient)).trace(hidden.reshape(2, 32, 128), tokens.reshape(2, 32))
        assert batched.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 2


def run(hidden, head, tokens, cotangents, *, bias=None, wanted=(0, 1), **options):
    """Outputs and the wanted gradients, jitted."""

    def f(*differentiated):
        arrays = dict(enumerate((hidden, head, bias))) | dict(zip(wanted, differentiated, strict=True))
        return linear_lse_and_target(
            arrays[0],
            arrays[1],
            tokens,
            **call(bias=arrays[2], entropy=True, implementation="mosaic_tpu", target=INTERPRETED, **options),
        )

    def both(*differentiated):
        outputs, vjp = jax.vjp(f, *differentiated)
        return outputs, vjp(tuple(cotangents))

    return jax.jit(both)(*[(hidden, head, bias)[i] for i in wanted])


@pytest.mark.parametrize("compact", [False, True])
def test_all_at_once_against_float64(compact):
    hidden, head, tokens, bias = problem(70, 16, 300)
    tokens = tokens.at[1:5].set(jnp.array([127, 128, 255, 256]))
    cotangents = jax.random.normal(jax.random.key(9), (3, 70))
    options = {"mask": jnp.arange(70) % 5 < 3, "temperature": jnp.linspace(0.5, 2.0, 70), "softcap": 3.0}
    layout = "dv" if compact else "vd"
    outputs, gradients = run(
        jnp.where(options["mask"][:, None], hidden, jnp.nan),
        head.T if compact else head,
        tokens,
        cotangents,
        bias=bias,
        wanted=(0, 1, 2),
        token_block=16,
        vocab_block=128,
        head_layout=layout,
        compact=compact,
        **options,
    )
    gradients = (gradients[0], gradients[1].T if compact else gradients[1], gradients[2])
    exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents, bias=bias, **options)
    for ours, expected in zip((*outputs, *gradients), (*exact, *exact_gradients), strict=True):
        assert error(ours, expected) < 1e-5


def test_a_frozen_head_has_a_separate_kernel():
    hidden, head, tokens, _ = problem(37, 16, 300, dtype=jnp.bfloat16)
    cotangents = jax.random.normal(jax.random.key(9), (3, 37))
    outputs, (gradient,) = run(hidden, head, tokens, cotangents, wanted=(0,), token_block=16, vocab_block=128)
    exact, (expected, _, _) = oracle(hidden, head, tokens, cotangents=cotangents)
    assert all(error(a, b) < 1e-5 for a, b in zip(outputs, exact, strict=True))
    assert error(gradient, expected) < 1e-2 and gradient.dtype == jnp.bfloat16


def lowered(count, width, vocab, kind, *, gradient, **options):
    """The program for a TPU, as text."""
    shape = (vocab, width) if options.get("head_layout", "vd") == "vd" else (width, vocab)
    arguments = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((count, width), shape)]
    arguments += [jax.ShapeDtypeStruct((count,), d) for d in (jnp.int32, jnp.bool_)]

    def f(hidden, head, tokens, mask):
        logp, lse = linear_logprob(
            hidden, head, tokens, **call(mask=mask, implementation="mosaic_tpu", target=Target("tpu", kind), **options)
        )
        return jnp.sum(logp) + jnp.sum(lse)

    g = jax.grad(f, (0, 1)) if gradient else f
    return jax.jit(g).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8192, 3584, 152064), {}),
        ((1000, 896, 151936), {"compact": True, "softcap": 30.0, "temperature": 0.7}),
        ((1021, 576, 49153), {"head_layout": "dv"}),
        ((1, 128, 100), {}),
    ],
)
def test_lowers_for_tpus(shape, options):
    text = lowered(*shape, "TPU v5e", gradient=True, **options)
    assert text.count("tpu_custom_call") == 2
    count, _, vocab = shape
    assert count < 2 or f"{count}x{vocab}x" not in text


@pytest.mark.parametrize("kind", ["v5e", "v5p", "v6e", "7x"])
def test_every_entry_of_the_table_fits_and_lowers(kind):
    keys = [key for key in TABLE if key[0] == kind]
    assert keys
    for device, which, dtype, width, count in keys:
        tiles = {"token_block": TABLE[device, which, dtype, width, count][0]}
        inputs = Inputs(
            jax.ShapeDtypeStruct((count, width), jnp.dtype(dtype)),
            jax.ShapeDtypeStruct((151936, width), jnp.dtype(dtype)),
            None,
            None,
            jax.ShapeDtypeStruct((count,), jnp.int32),
        )
        spec = Spec(target=Target("tpu", f"TPU {device}"))
        blocks = tuning.tpu_blocks(spec, inputs, which)
        assert blocks is not None and (blocks.tokens, blocks.vocab) == TABLE[device, which, dtype, width, count], tiles
    for width in {key[3] for key in keys}:
        assert "tpu_custom_call" in lowered(4096, width, 151936, f"TPU {kind}", gradient=True)


def test_tiles_shrink_to_memory_and_too_many_features_are_refused():
    def tiles(width, kind):
        hidden, head = (jax.ShapeDtypeStruct((n, width), jnp.float32) for n in (4096, 151936))
        inputs = Inputs(hidden, head, None, None, jax.ShapeDtypeStruct((4096,), jnp.int32))
        return tuning.tpu_blocks(Spec(target=Target("tpu", kind)), inputs, "backward")

    assert tiles(1024, "TPU v5p").tokens == 256
    small = tiles(8192, "TPU v5p")
    assert small.vocab < 512 and small.vocab % 128 == 0
    assert tiles(65536, "TPU v5p") is None
    with pytest.raises(ValueError, match="'mosaic_tpu' cannot do this: D=65536 features"):
        jax.eval_shape(
            lambda h, w, y: linear_logprob(h, w, y, **call(implementation="mosaic_tpu", target=INTERPRETED)),
            *(jax.ShapeDtypeStruct((n, 65536), jnp.float32) for n in (64, 512)),
            jax.ShapeDtypeStruct((64,), jnp.int32),
        )


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({}, jnp.float16, "float16, which TPUs do not multiply"),
        ({"residual": "logits"}, jnp.float32, "residual='logits'"),
    ],
)
def test_unsupported_calls_are_refused_with_the_reason(options, dtype, message):
    hidden, head, tokens, _ = problem(4, 8, 16, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        linear_logprob(hidden, head, tokens, **call(implementation="mosaic_tpu", target=INTERPRETED, **options))


def test_a_tpu_uses_the_kernels_where_the_compiler_has_nothing_to_partition():
    hidden, head, tokens, _ = problem(64, 128, 256)
    target = Target("tpu", "TPU v6e")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def f(hidden, head, tokens):
        return linear_logprob(hidden, head, tokens, **call(target=target))[0]

    whole = jax.shard_map(f, mesh=mesh, in_specs=(spec("data"), spec(), spec("data")), out_specs=spec("data"))
    for g, expected in ((f, 0), (whole, 1)):  # eight devices, and an array that may be split over them
        text = jax.jit(g).trace(hidden, head, tokens).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") == expected


def test_valid_tokens_set_the_grid():
    hidden, head, tokens, _ = problem(64, 8, 128)
    traced = jax.make_jaxpr(
        lambda m: linear_logprob(
            hidden, head, tokens, **call(mask=m, compact=True, implementation="mosaic_tpu", target=INTERPRETED)
        )
    )(np.ones(64, bool))
    assert "DynamicGridDim" in str(traced)
