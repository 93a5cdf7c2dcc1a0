"""A Hopper kernel for the forward pass; the backward pass is that of ``xla_token``.

The gradients are two plain matrix products per chunk, which XLA's libraries run at full speed.
"""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from prm_jax.pallas.linear_logprob import mosaic_gpu_kernel as kernel
from prm_jax.pallas.linear_logprob import xla_token
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec, Wanted, vocab_size
from prm_jax.pallas.linear_logprob.tuning import device_name, gpu_columns
from prm_jax.varying import mark, varying_axes

_FEATURES = 64  # per step: one row of them is one 128-byte swizzle
_ROWS = 64  # per warpgroup: more would not leave registers for 256 columns
_SHARED_MEMORY = 200 * 1024  # for the ring, of the 227 KiB that a block may have
_CLUSTERS = 66  # that run concurrently: 132 multiprocessors, two per cluster
_MOST_SPLITS = 16


def refusal(spec: Spec, inputs: Inputs) -> str | None:
    """See ``problem.Backend``."""
    dtype, width = inputs.hidden.dtype, inputs.hidden.shape[1]
    if device_name(spec.target.device_kind) != "h100":
        return f"it needs a Hopper GPU (H100, H200, GH200), found {spec.target.device_kind or 'unknown kind'}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"hidden is {dtype}; the tensor cores take bfloat16 or float16 here"
    if inputs.bias is not None:
        return "a bias"
    if width % _FEATURES:
        return f"D={width} is not a multiple of {_FEATURES}"
    if vocab_size(spec, inputs.head) < gpu_columns(spec, inputs):
        return f"V={vocab_size(spec, inputs.head)} is below a tile's {gpu_columns(spec, inputs)} columns"
    if spec.head_layout == "dv" and vocab_size(spec, inputs.head) % 64:
        return f"V={vocab_size(spec, inputs.head)} is not a multiple of 64, which a head [D, V] needs"
    if spec.residual != "recompute":
        return f"residual={spec.residual!r}; its logits never leave the chip"
    if spec.gather_axes:
        return "gather_axes; the head must be whole in D"
    return None


def forward(spec: Spec, inputs: Inputs, *, keep: bool) -> tuple[Outputs, Any]:
    """See ``problem.Backend``."""
    del keep  # refused
    shape = _shape(spec, inputs)
    count = inputs.hidden.shape[0]
    missing = -count % (kernel.CLUSTER * shape.block_rows)
    inverse = inputs.inverse_temperature
    if inverse is None:
        inverse = mark(varying_axes(inputs))(jnp.ones((count,), jnp.float32))
    operands = [
        jnp.pad(inputs.hidden, ((0, missing), (0, 0))),
        inputs.head.astype(inputs.hidden.dtype),
        jnp.pad(inputs.tokens, (0, missing)),
        jnp.pad(inverse, (0, missing)),
    ]
    if inputs.valid is not None:
        operands.append(inputs.valid[None])
    kind = jax.typeof(operands[0]).manual_axis_type
    parts = kernel.call(shape, _interpreter() if spec.target.interpret else None, operands, kind)[:, :, :count]
    top = jnp.max(parts[0], axis=0)
    scale = jnp.exp(parts[0] - top)
    total = jnp.sum(parts[1] * scale, axis=0)
    lse = top + jnp.log(total)
    known = (inputs.tokens >= 0) & (inputs.tokens < shape.vocab)
    target = jnp.where(known, jnp.sum(parts[2], axis=0), jnp.nan)
    entropy = lse - jnp.sum(parts[3] * scale, axis=0) / total if spec.entropy else None
    return Outputs(lse, target, entropy), None


def backward(spec: Spec, inputs: Inputs, outputs: Outputs, kept: Any, cotangents: Outputs, wanted: Wanted) -> Gradients:
    """See ``problem.Backend``."""
    if inputs.valid is not None:  # rows that the forward pass never visited are undefined
        inside = jnp.arange(inputs.hidden.shape[0]) < inputs.valid
        outputs = jax.tree.map(lambda x: jnp.where(inside, x, 0.0), outputs)
    return xla_token.backward(spec, inputs, outputs, kept, cotangents, wanted)


def _shape(spec: Spec, inputs: Inputs) -> kernel.Shape:
    count, width = inputs.hidden.shape
    vocab, columns = vocab_size(spec, inputs.head), gpu_columns(spec, inputs)
    tiles = math.ceil(vocab / columns)
    splits = _splits(math.ceil(count / (kernel.CLUSTER * kernel.WARPGROUPS * _ROWS)), tiles)
    stage = (kernel.WARPGROUPS * _ROWS + columns) * _FEATURES * inputs.hidden.dtype.itemsize
    vocab_blocks, steps = math.ceil(tiles / splits), width // _FEATURES
    return kernel.Shape(
        vocab=vocab,
        rows=_ROWS,
        columns=columns,
        features=_FEATURES,
        stages=min(_SHARED_MEMORY // stage, vocab_blocks * steps),
        splits=splits,
        vocab_blocks=vocab_blocks,
        feature_steps=steps,
        layout=spec.head_layout,
        softcap=spec.softcap,
        entropy=spec.entropy,
        temperature=inputs.inverse_temperature is not None,
        valid=inputs.valid is not None,
        interpret=spec.target.interpret,
    )


def _splits(clusters: int, tiles: int) -> int:
    """Splits of the vocabulary that leave the fewest multiprocessors without work."""

    def waste(splits: int) -> float:
        waves = math.ceil(clusters * splits / _CLUSTERS)
        return waves * _CLUSTERS * math.ceil(tiles / splits) / (clusters * tiles)

    return min(range(1, min(_MOST_SPLITS, tiles) + 1), key=lambda s: (round(waste(s), 2), s))


def _interpreter() -> Any:
    if not hasattr(plgpu, "InterpretGPUParams"):
        raise NotImplementedError(f"jax {jax.__version__} cannot interpret clusters of GPU blocks; jax 0.11 can")
    return cast(Any, plgpu).InterpretGPUParams()
