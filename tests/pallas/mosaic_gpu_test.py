"""The Hopper kernel, interpreted on the CPU where jax can do that, and lowered for GPUs without one."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from prm_jax.pallas import Target, linear_logprob, linear_lse_and_target
from prm_jax.pallas.linear_logprob import mosaic_gpu
from prm_jax.pallas.linear_logprob.tuned_blocks import TABLE
from tests.pallas.backend_contract import call, error, oracle, problem

KIND = "NVIDIA H100 80GB HBM3"
needs_interpreter = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this jax cannot interpret clusters of GPU blocks (0.11 can)"
)


@needs_interpreter
@pytest.mark.parametrize(
    ("layout", "options", "valid"),
    [
        pytest.param("vd", {}, None, marks=pytest.mark.slow),
        pytest.param("dv", {"softcap": 5.0, "temperature": 0.7}, None, marks=pytest.mark.slow),
        ("vd", {"temperature": jnp.linspace(0.5, 2.0, 300)}, 3),
    ],
)
def test_against_float64(layout, options, valid):
    count, vocab = 300, 328 if layout == "vd" else 320  # two clusters of rows, tiles that reach back
    hidden, head, tokens, _ = problem(count, 64, vocab, dtype=jnp.bfloat16)
    hidden = hidden / 4
    tokens = tokens.at[1:7].set(jnp.array([127, 128, 255, 256, 199, 200]))
    mask = None if valid is None else jnp.arange(count) % 100 == 5
    cotangents = jax.random.normal(jax.random.key(9), (3, count))
    target = Target("gpu", KIND, interpret=True)

    def run(hidden, head):
        return linear_lse_and_target(
            hidden,
            head,
            tokens,
            **call(
                mask=mask,
                compact=valid is not None,
                implementation="mosaic_gpu",
                target=target,
                vocab_block=128,
                head_layout=layout,
                entropy=True,
                **options,
            ),
        )

    def both(hidden, head):
        outputs, vjp = jax.vjp(run, hidden, head)
        return outputs, vjp(tuple(cotangents))

    outputs, gradients = jax.jit(both)(hidden, head if layout == "vd" else head.T)
    gradients = (gradients[0], gradients[1] if layout == "vd" else gradients[1].T)
    exact, exact_gradients = oracle(hidden, head, tokens, cotangents=cotangents, mask=mask, **options)
    assert all(error(a, b) < 1e-5 for a, b in zip(outputs, exact, strict=True))
    assert all(error(a, b) < 1e-2 for a, b in zip(gradients, exact_gradients[:2], strict=True))


def lowered(count, width, vocab, *, gradient=False, dtype=jnp.bfloat16, **options):
    """The program for a GPU, as text."""
    shape = (vocab, width) if options.get("head_layout", "vd") == "vd" else (width, vocab)
    arguments = [jax.ShapeDtypeStruct(s, dtype) for s in ((count, width), shape)]
    arguments += [jax.ShapeDtypeStruct((count,), d) for d in (jnp.int32, jnp.bool_)]

    def f(hidden, head, tokens, mask):
        out = linear_lse_and_target(
            hidden, head, tokens, **call(mask=mask, implementation="mosaic_gpu", target=Target("gpu", KIND), **options)
        )
        return sum(jnp.sum(x) for x in out)

    g = jax.grad(f, (0, 1)) if gradient else f
    return jax.jit(g).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8192, 3584, 152064), {}),
        ((1000, 896, 151936), {"compact": True, "softcap": 30.0, "temperature": 0.7, "entropy": True}),
        ((1021, 576, 49216), {"head_layout": "dv", "dtype": jnp.float16}),
    ],
)
def test_lowers_for_hopper(shape, options):
    text = lowered(*shape, **options)
    assert text.count("custom_call @mosaic_gpu") == 1
    assert f"{shape[0]}x{shape[2]}x" not in text


def test_the_backward_pass_is_xlas():
    text = lowered(512, 128, 1000, gradient=True)
    assert text.count("custom_call @mosaic_gpu") == 1
    assert text.count("stablehlo.dot_general") == 3


@pytest.mark.parametrize("key", [key for key in TABLE if key[0] == "h100"])
def test_every_entry_of_the_table_lowers(key):
    _, which, dtype, width, count = key
    assert which == "forward" and TABLE[key][0] == 64
    assert "custom_call @mosaic_gpu" in lowered(count, width, 151936, dtype=jnp.dtype(dtype))


@pytest.mark.parametrize("clusters", [1, 3, 8, 32, 66, 67, 128])
def test_splits_leave_few_multiprocessors_idle(clusters):
    tiles = 594
    splits = mosaic_gpu._splits(clusters, tiles)
    rounds = -(-clusters * splits // 66)
    ideal = clusters * tiles / 66
    most = min(16 * clusters / 66, 1.0)  # sixteen splits of few rows cannot fill the device
    assert rounds * -(-tiles // splits) <= 1.35 * ideal / most


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "options", "message"),
    [
        ((8, 128, 512), jnp.bfloat16, "NVIDIA A100-SXM4-80GB", {}, "needs a Hopper GPU .*found NVIDIA A100"),
        ((8, 128, 512), jnp.float32, KIND, {}, "hidden is float32"),
        ((8, 100, 512), jnp.bfloat16, KIND, {}, "D=100 is not a multiple of 64"),
        ((8, 128, 100), jnp.bfloat16, KIND, {}, "V=100 is below a tile's 256 columns"),
        ((8, 128, 520), jnp.bfloat16, KIND, {"head_layout": "dv"}, "V=520 is not a multiple of 64"),
        ((8, 128, 512), jnp.bfloat16, KIND, {"bias": jnp.zeros(512)}, "cannot do this: a bias"),
        ((8, 128, 512), jnp.bfloat16, KIND, {"residual": "logits"}, "residual='logits'"),
    ],
)
def test_unsupported_calls_are_refused_with_the_reason(shape, dtype, kind, options, message):
    hidden, head, tokens, _ = problem(*shape, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        head = head.T if options.get("head_layout") == "dv" else head
        linear_logprob(hidden, head, tokens, **call(implementation="mosaic_gpu", target=Target("gpu", kind), **options))


def test_a_gpu_uses_xla_by_default():
    hidden, head, tokens, _ = problem(8, 64, 512, dtype=jnp.bfloat16)
    target = Target("gpu", KIND)
    text = jax.jit(lambda h: linear_logprob(h, head, tokens, **call(target=target))[0]).lower(hidden).as_text()
    assert "mosaic_gpu" not in text
