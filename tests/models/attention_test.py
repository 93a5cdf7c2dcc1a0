"""Implementations of attention: values and gradients against float64 loops, memory, sharding, the choice."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, init_params, make_mesh, token_logprobs
from prm_jax.models.attention import attend
from prm_jax.models.attention_choice import resolve
from prm_jax.models.attention_spec import AttentionSpec
from prm_jax.models.blockwise_attention import block_size
from prm_jax.models.splash_attention import Blocks, block_sizes, splash_attention


def splash(q, k, v, segment_ids=None, *, window=None, softcap=None, offset=0, block=None):
    """The TPU kernels in the interpreter."""
    spec = AttentionSpec(1 / math.sqrt(q.shape[-1]), window, softcap, offset, block)
    return splash_attention(q, k, v, segment_ids, spec, interpret=True)


def xla(implementation, **given):
    def run(q, k, v, segment_ids=None, **more):
        return attend(q, k, v, segment_ids=segment_ids, implementation=implementation, **given, **more)

    return run


IMPLEMENTATIONS = {
    "naive": xla("naive"), "blockwise": xla("blockwise"), "blocks of 16": xla("blockwise", block=16), "splash": splash,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: T queries at columns ``offset`` and on, the head counts, and what is masked."""

    length: int
    heads: int
    kv_heads: int
    width: int
    packed: bool = False
    window: int | None = None
    softcap: float | None = None
    offset: int = 0

    @property
    def given(self):
        return {"window": self.window, "softcap": self.softcap, "offset": self.offset}


CASES = (
    Case(1, 2, 1, 8), Case(1, 7, 1, 64, packed=True, window=1), Case(40, 6, 2, 8, packed=True, window=7),
    Case(127, 3, 3, 64, softcap=2.0), Case(128, 3, 1, 128, packed=True), Case(128, 2, 2, 64, window=128),
    Case(129, 7, 1, 80, packed=True, window=60, softcap=1.5), Case(200, 3, 1, 80, window=30), Case(200, 7, 7, 64),
    Case(60, 4, 2, 16, packed=True, offset=32), Case(30, 4, 2, 16, window=20, softcap=3.0, offset=41),
    Case(513, 3, 1, 64, packed=True, window=150), Case(513, 7, 1, 64),
)  # fmt: skip
# Each implementation meets every feature; long rows are left to those that are made for them.
COMBINATIONS = [
    (name, case)
    for name in IMPLEMENTATIONS
    for case in CASES
    if not (name == "splash" and case.length < 60) and not (name == "blocks of 16" and case.length > 130)
    and not (name == "blockwise" and case.length < 127) and not (name == "naive" and case.length > 300)
]  # fmt: skip


def problem(case, *, dtype="float32", rows=2):
    rng = np.random.default_rng(case.length)
    columns = case.length + case.offset
    shapes = ((case.length, case.heads), (columns, case.kv_heads), (columns, case.kv_heads), (case.length, case.heads))
    arrays = [jnp.asarray(rng.normal(size=(rows, n, heads, case.width)), dtype) for n, heads in shapes]
    lengths = np.cumsum(rng.integers(1, 23, size=(rows, 300)), axis=1)
    segments = (np.arange(columns)[None, None] >= lengths[:, :, None]).sum(1) if case.packed else None
    return arrays, segments


def reference(case, q, k, v, d_out, segments):
    """Values and gradients in float64, row by row and head by head."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    group, scale = q.shape[2] // k.shape[2], 1 / np.sqrt(q.shape[3])
    out, dq, dk, dv = (np.zeros(x.shape) for x in (q, q, k, v))
    distance = case.offset + np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])
    allowed = (distance >= 0) & (distance < (case.window or 10**9))
    for b in range(len(q)):
        sees = allowed
        if segments is not None:
            sees = allowed & (segments[b][case.offset :, None] == segments[b][None])
        for h in range(q.shape[2]):
            raw = q[b, :, h] @ k[b, :, h // group].T * scale
            capped = raw if case.softcap is None else case.softcap * np.tanh(raw / case.softcap)
            scores = np.where(sees, capped, -np.inf)
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            out[b, :, h] = p @ v[b, :, h // group]
            dp = d_out[b, :, h] @ v[b, :, h // group].T
            ds = p * (dp - (p * dp).sum(1, keepdims=True)) * scale
            ds *= 1.0 if case.softcap is None else 1 - (capped / case.softcap) ** 2
            dq[b, :, h] = ds @ k[b, :, h // group]
            dk[b, :, h // group] += ds.T @ q[b, :, h]
            dv[b, :, h // group] += p.T @ d_out[b, :, h]
    return out, dq, dk, dv


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(f, q, k, v, d_out, segments):
    out, back = jax.vjp(lambda q, k, v: f(q, k, v, segments), q, k, v)
    return (out, *back(d_out))


def error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / max(np.linalg.norm(expected), 1e-30)


@pytest.mark.parametrize(("name", "case"), COMBINATIONS, ids=str)
def test_values_and_gradients_match_float64_loops(name, case):
    arrays, segments = problem(case)
    found = value_and_gradients(functools.partial(IMPLEMENTATIONS[name], **case.given), *arrays, segments)
    for x, expected in zip(found, reference(case, *arrays, segments), strict=True):
        sole = case.length == 1 and case.offset == 0  # one key: gradients of q and k are 0
        assert x.dtype == jnp.float32 and (error(x, expected) < 1e-5 or sole)


@pytest.mark.parametrize("name", ["naive", "blocks of 16", "splash"])
def test_half_precision(name):
    case = Case(50, 4, 2, 16, packed=True, window=30, softcap=4.0)
    arrays, segments = problem(case, dtype="bfloat16")
    found = value_and_gradients(functools.partial(IMPLEMENTATIONS[name], **case.given), *arrays, segments)
    for x, expected in zip(found, reference(case, *arrays, segments), strict=True):
        assert x.dtype == jnp.bfloat16 and error(x, expected) < 2e-2


@pytest.mark.parametrize("name", ["naive", "blocks of 16"])
def test_padding_is_ignored_even_nan(name):
    """Not its keys, values and queries, nor the cotangents of its outputs."""
    arrays, _ = problem(Case(80, 4, 2, 16))
    segments = jnp.asarray(np.repeat([-1, 3, 4, -1], [16, 21, 30, 13])[None].repeat(2, 0), jnp.int32)
    clean = value_and_gradients(IMPLEMENTATIONS[name], *arrays, segments)
    padding = (segments < 0)[..., None, None]
    poisoned = [jnp.where(padding, jnp.nan, x) for x in arrays]
    for a, b in zip(clean, value_and_gradients(IMPLEMENTATIONS[name], *poisoned, segments), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.asarray(b)[np.asarray(segments) < 0].any()


@pytest.mark.parametrize("name", ["blocks of 16", "splash"])
def test_later_tokens_and_other_segments_change_nothing(name):
    (q, k, v, _), _ = problem(Case(80, 4, 2, 16))
    segments = jnp.asarray(np.arange(80) >= 37)[None].repeat(2, 0).astype(jnp.int32)
    f = jax.jit(IMPLEMENTATIONS[name])
    before = f(q, k, v, segments)
    after = f(q, k.at[:, :37].set(1e6), v.at[:, :37].set(-1e6), segments)
    np.testing.assert_array_equal(before[:, 37:], after[:, 37:])
    np.testing.assert_array_equal(f(q, k, v, None)[:, :50], f(q, k.at[:, 50:].set(9.0), v, None)[:, :50])
    same = jax.jit(functools.partial(IMPLEMENTATIONS[name], window=9))
    np.testing.assert_array_equal(same(q, k, v)[:, 58:], same(q, k.at[:, :50].set(9.0), v)[:, 58:])


def test_vmap_and_remat():
    (q, k, v, d_out), segments = problem(Case(40, 4, 2, 8, packed=True), rows=4)
    f = IMPLEMENTATIONS["blocks of 16"]
    whole = value_and_gradients(f, q, k, v, d_out, segments)

    def split(x):
        return None if x is None else x.reshape(2, 2, *x.shape[1:])

    parts = jax.jit(jax.vmap(lambda *a: value_and_gradients(f, *a)))(*map(split, (q, k, v, d_out, segments)))
    again = value_and_gradients(jax.checkpoint(f), q, k, v, d_out, segments)
    for a, b, c in zip(whole, parts, again, strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), atol=1e-5)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize(
    ("name", "mode"), [("blocks of 16", "auto"), ("blocks of 16", "shard_map"), ("splash", "shard_map")]
)
def test_sharded_over_devices_equals_one_device(name, mode):
    """Rows over four devices and heads over two; keys and values are not gathered."""
    (q, k, v, d_out), segments = problem(Case(40, 4, 2, 8, packed=True), rows=4)
    f = IMPLEMENTATIONS["blocks of 16"]
    expected = value_and_gradients(f, q, k, v, d_out, segments)
    mesh = make_mesh(4, 1, 2)
    heads, ids = P("data", None, "tensor", None), P("data", None)
    run = functools.partial(value_and_gradients, f)
    if mode == "shard_map":
        run = jax.shard_map(run, mesh=mesh, in_specs=(heads,) * 4 + (ids,), out_specs=heads)
    places = [jax.NamedSharding(mesh, spec) for spec in (*(heads,) * 4, ids)]
    compiled = jax.jit(run, in_shardings=places).lower(q, k, v, d_out, segments).compile()
    for a, b in zip(compiled(*jax.device_put([q, k, v, d_out, segments], places)), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    gathered = [line for line in compiled.as_text().splitlines() if "all-gather(" in line and "f32" in line]
    assert not gathered, gathered


F32, BF16 = {"dtype": "float32"}, {"dtype": "bfloat16"}
CHOICES = [  # platform, length, other arguments, chosen
    ("cpu", 255, F32, "naive"), ("cpu", 256, F32, "blockwise"), ("cpu", 4096, BF16, "blockwise"),
    ("tpu", 255, BF16, "naive"), ("tpu", 256, BF16, "splash"), ("tpu", 4096, F32, "splash"),
    ("tpu", 4096, {"packed": True, "softcap": True, "offset": 8}, "splash"),
    ("tpu", 512, {"dtype": "float16"}, "blockwise"),
    ("gpu", 1, BF16, "cudnn"), ("gpu", 4096, BF16, "cudnn"),
    ("gpu", 512, F32, "naive"), ("gpu", 4096, F32, "blockwise"),
    ("gpu", 4096, {"packed": True}, "blockwise"), ("gpu", 512, {"softcap": True}, "naive"),
    ("gpu", 4096, {"head_dim": 100}, "blockwise"), ("gpu", 4096, {"head_dim": 512}, "blockwise"),
    ("gpu", 4096, {"offset": 128}, "blockwise"),
]  # fmt: skip


@pytest.mark.parametrize(("platform", "length", "given", "chosen"), CHOICES)
def test_the_choice(platform, length, given, chosen):
    given = {"dtype": "bfloat16", "head_dim": 64, **given}
    assert resolve("auto", platform=platform, length=length, **given) == chosen
    for name in ("naive", "blockwise", chosen):
        assert resolve(name, platform=platform, length=length, **given) == name


@pytest.mark.parametrize(
    ("name", "platform", "given", "why"),
    [
        ("splash", "cpu", {}, "runs on TPUs; found platform 'cpu'"), ("splash", "tpu", {"dtype": "float16"}, "float16"),
        ("cudnn", "cpu", {}, "NVIDIA GPUs"), ("cudnn", "gpu", {"dtype": "float32"}, "--model.compute-dtype bfloat16"),
        ("cudnn", "gpu", {"packed": True}, "packed rows"), ("cudnn", "gpu", {"softcap": True}, "soft-capped"),
        ("cudnn", "gpu", {"head_dim": 20}, "found 20"), ("cudnn", "gpu", {"offset": 1}, "after the first key"),
    ],
)  # fmt: skip
def test_an_impossible_implementation_is_refused_by_name(name, platform, given, why):
    with pytest.raises(UserError, match=re.escape(why)):
        resolve(name, platform=platform, length=512, **{"dtype": "bfloat16", "head_dim": 64, **given})


def test_block_sizes():
    assert [block_size(n) for n in (1, 100, 268, 512, 4096, 4097)] == [8, 56, 56, 64, 64, 128]
    assert block_sizes(4096, 4096) == Blocks(512, 1024) and block_sizes(600, 600) == Blocks(128, 128)
    assert block_sizes(4100, 8200) == Blocks(512, 1024) and block_sizes(1, 300) == Blocks(128, 128)


def test_shapes_and_ranges_are_checked():
    (q, k, v, _), _ = problem(Case(8, 4, 2, 8))
    for given, why in (
        ({"offset": 1}, "do not fit"), ({"window": 0}, "window must be at least 1"), ({"softcap": 0.0}, "softcap"),
        ({"segment_ids": jnp.zeros((2, 7), jnp.int32)}, "segment_ids must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            attend(q, k, v, **given)
    with pytest.raises(ValueError, match="num_kv_heads"):
        attend(q, k[:, :, :1].repeat(3, 2), v[:, :, :1].repeat(3, 2))


def test_splash_lowers_for_tpus_on_any_machine():
    """Packed, with a window and a soft cap, also inside ``shard_map``; the forward kernel is not run twice."""
    (q, k, v, d_out), segments = problem(Case(300, 4, 2, 64, packed=True), rows=4)
    spec = AttentionSpec(0.125, window=100, softcap=30.0)

    def gradients(q, k, v, d_out, segments):
        f = jax.checkpoint(
            lambda q, k, v: splash_attention(q, k, v, segments, spec),
            policy=jax.checkpoint_policies.save_only_these_names("attention"),
        )
        return value_and_gradients(lambda q, k, v, _: f(q, k, v), q, k, v, d_out, None)

    heads, ids = P("data", None, "tensor", None), P("data", None)
    sharded = jax.shard_map(gradients, mesh=make_mesh(2, 1, 2), in_specs=(heads,) * 4 + (ids,), out_specs=heads)
    for run in (gradients, sharded):
        text = jax.jit(run).trace(q, k, v, d_out, jnp.asarray(segments)).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("stablehlo.custom_call @tpu_custom_call") == 3


def test_attend_uses_the_kernels_of_the_platform_that_its_mesh_names():
    (q, k, v, _), _ = problem(Case(256, 4, 2, 64))
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(attend).trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 1
    with pytest.raises(UserError, match="runs on TPUs; found platform 'cpu'"):
        attend(q, k, v, implementation="splash")


CONFIG = ModelConfig(
    vocab_size=32, hidden_size=32, intermediate_size=32, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8,
    max_position_embeddings=4096,
)  # fmt: skip


def _compiled(config, length):
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    loss = jax.value_and_grad(lambda p, t: token_logprobs(config, p, t, segment_ids=t).sum())
    return jax.jit(loss).lower(params, tokens).compile()


def test_memory_grows_with_the_length_and_not_with_its_square():
    small, large = (_compiled(CONFIG, length) for length in (2048, 4096))
    assert large.memory_analysis().temp_size_in_bytes < 2.3 * small.memory_analysis().temp_size_in_bytes
    for shape in re.findall(r"[fspb]\w*\[([\d,]+)\]", large.as_text()):
        assert sum(int(n) >= 4096 for n in shape.split(",")) < 2, shape


@pytest.mark.heavy
def test_scores_with_and_without_gradient_agree_bit_for_bit():
    """Implicit rewards are zero where policy and reference are equal: the same on long rows."""
    config = dataclasses.replace(CONFIG, num_layers=2)
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 300), 0, 32)
    plain = jax.jit(lambda p: token_logprobs(config, p, tokens))(params)
    logp = jax.jit(lambda p: jax.vjp(lambda p: token_logprobs(config, p, tokens), p)[0])(params)

    def loss(p):
        logp = token_logprobs(config, p, tokens)
        return (logp**2).sum(), logp

    (_, trained), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(plain, logp)
    np.testing.assert_array_equal(plain, trained)
    naive = jax.jit(lambda p: token_logprobs(dataclasses.replace(config, attention="naive"), p, tokens))(params)
    np.testing.assert_allclose(plain, naive, atol=2e-5)
