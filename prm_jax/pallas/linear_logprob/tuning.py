"""Blocks of the kernels: a table for known devices and shapes, and a model of memory for everything else."""

import dataclasses
import math

import jax.numpy as jnp

from prm_jax.pallas.linear_logprob.problem import Inputs, Spec, vocab_size
from prm_jax.pallas.linear_logprob.tuned_blocks import TABLE

_MIB = 2**20
_TPU_MEMORY_ELSEWHERE = 12  # the default of every generation

D_BUCKETS = (1024, 2048, 4096, 8192)
T_BUCKETS = (2048, 16384)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A kernel's tile.

    Attributes:
      tokens: rows.
      vocab: columns.
      row_piece: rows of the tile that are worked on at once; divides ``tokens``.
      column_piece: columns, in the forward pass; divides ``vocab``.
    """

    tokens: int
    vocab: int
    row_piece: int
    column_piece: int


def bucket(size: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds the size; the largest for all beyond."""
    return next((b for b in buckets if size <= b), buckets[-1])


def device_name(device_kind: str) -> str:
    """The table's name of a device: "v5e", "v5p", "v6e", "7x", "h100"; "" for unknown ones."""
    kind = device_kind.lower()
    for name, patterns in {
        "v5e": ("v5e", "v5 lite", "v5litepod"),
        "v6e": ("v6e", "v6 lite"),
        "v5p": ("v5p", "tpu v5"),
        "7x": ("tpu7", "7x"),
        "h100": ("h100", "h200", "h800", "h20", "gh200"),
    }.items():
        if any(pattern in kind for pattern in patterns):
            return name
    return ""


def lookup(spec: Spec, inputs: Inputs, which: str) -> tuple[int, int] | None:
    """(token block, vocab block) of the table for a device, pass, dtype and shape bucket."""
    count, width = inputs.hidden.shape
    key = (
        device_name(spec.target.device_kind),
        which,
        inputs.hidden.dtype.name,
        bucket(width, D_BUCKETS),
        bucket(count, T_BUCKETS),
    )
    return TABLE.get(key)


def tpu_memory(device_kind: str) -> int:
    """Bytes of VMEM that a kernel may take."""
    limits = {"v5e": 100, "v6e": 100, "v5p": 58, "7x": 58}
    return limits.get(device_name(device_kind), _TPU_MEMORY_ELSEWHERE) * _MIB


def tpu_bytes(spec: Spec, inputs: Inputs, which: str, tokens: int, vocab: int) -> int:
    """VMEM of a tile: blocks twice, for prefetching the next one; sums once; scalars padded to lanes."""
    width = math.ceil(inputs.hidden.shape[1] / 128) * 128
    item, head_item = inputs.hidden.dtype.itemsize, inputs.head.dtype.itemsize
    hidden, head = 2 * tokens * width * item, 2 * vocab * width * head_item
    tile = tokens * vocab * 4
    scalars = 2 * 2 * tokens * 128 * 4
    if which == "forward":
        return hidden + head + tile + scalars + 6 * tokens * 128 * 4
    sums = vocab * width * 4 + 2 * vocab * width * head_item  # the head's gradient, and its block going out
    through = 4 * tokens * width * 4  # hidden's gradient, in and out
    cast = vocab * width * item if head_item != item or vocab_size(spec, inputs.head) % vocab else 0
    return hidden + head + 3 * tile + scalars + sums + through + cast


def tpu_blocks(spec: Spec, inputs: Inputs, which: str) -> Blocks | None:
    """The tile for a call: given, from the table, or the largest good one that fits; None when none does."""
    count, vocab = inputs.hidden.shape[0], vocab_size(spec, inputs.head)
    sublanes = 16 if inputs.hidden.dtype == jnp.bfloat16 else 8
    tuned = lookup(spec, inputs, which) or (512 if which == "forward" else 256, 512)
    tokens, columns = spec.token_block or tuned[0], spec.vocab_block or tuned[1]
    # The backward pass needs four blocks of tokens; see `mosaic_tpu`.
    most = math.ceil(count / 4) if which == "backward" else count
    tokens = _multiple(min(tokens, most), sublanes)
    columns = _multiple(min(columns, vocab), 128)
    while tpu_bytes(spec, inputs, which, tokens, columns) > tpu_memory(spec.target.device_kind):
        if columns > 128:
            columns = _multiple(columns // 2, 128)
        elif tokens > sublanes:
            tokens = _multiple(tokens // 2, sublanes)
        else:
            return None
    return Blocks(tokens, columns, _divisor(tokens, 256, sublanes), _divisor(columns, 256, 128))


def gpu_columns(spec: Spec, inputs: Inputs) -> int:
    """Columns of a Hopper tile: given, from the table, or 256.

    A soft cap or temperatures use registers: with them the compiler would spill at more than 128.
    """
    columns = spec.vocab_block or (lookup(spec, inputs, "forward") or (64, 256))[1]
    plain = spec.softcap is None and inputs.inverse_temperature is None
    return min(_multiple(columns, 64), 256 if plain else 128)


def _multiple(size: int, of: int) -> int:
    return max(of, math.ceil(size / of) * of)


def _divisor(size: int, most: int, of: int) -> int:
    """The largest divisor of ``size`` up to ``most`` that is a multiple of ``of``."""
    return max(d for d in range(of, min(size, most) + 1, of) if size % d == 0)
