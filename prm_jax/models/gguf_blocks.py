"""Kernels that stay in the blocks of GGUF files: Q8_0, Q4_0 and Q4_1, groups of 32 inputs, held exactly."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.checkpoint_layout import Slot, slots
from prm_jax.models.config import ModelConfig
from prm_jax.models.gguf_weights import GgufWeights
from prm_jax.models.qtensor import QTensor

BLOCK = 32
"""Inputs per block."""


@dataclasses.dataclass(frozen=True)
class BlockKind:
    """A type of blocks: half-precision numbers (the scale, and the smallest weight with `has_low`), then integers."""

    name: str
    bits: int
    has_low: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return 2 * (1 + self.has_low) + BLOCK * self.bits // 8


KINDS = {8: BlockKind("Q8_0", 8), 2: BlockKind("Q4_0", 4), 3: BlockKind("Q4_1", 4, has_low=True)}
"""By GGML's number."""

_TABLES = (8,)
"""Of an embedding or head."""


def kept_kinds(config: ModelConfig, source: GgufWeights) -> dict[tuple[str, ...], BlockKind]:
    """The matrices that stay in few bits, by path: kernels of one type in all layers, embedding and head in 8 bits.

    Raises:
      UserError: no kernels of such a type.
    """
    found: dict[tuple[str, ...], BlockKind] = {}
    seen: set[int] = set()
    for slot in slots(config):
        if _is_table(slot) and source.kind(slot.name) in _TABLES:
            found[slot.path] = KINDS[source.kind(slot.name)]
        if not slot.transposed or slot.path[-2] == "router":
            continue
        numbers = {source.kind(name) for name in slot.names}
        seen |= numbers
        if len(numbers) == 1 and numbers <= KINDS.keys():
            found[slot.path] = KINDS[numbers.pop()]
    if not any(path[0] == "layers" for path in found):
        raise UserError(
            f"{source.path}: no kernel can stay as it is stored: expected blocks of type "
            f"{', '.join(kind.name for kind in KINDS.values())}, the same in all layers, found GGML's types "
            f"{', '.join(map(str, sorted(seen)))}; expand the weights, or round them with quantize int8 or int4"
        )
    return found


def kept_leaf(source: GgufWeights, slot: Slot, kind: BlockKind) -> QTensor:
    """A kernel [*stack, in, out] or table of NumPy arrays in few bits, which expands to the numbers of the file."""
    if _is_table(slot):
        found = _from_blocks(source.read_blocks(slot.name, kind.nbytes), kind)
        parts: dict[str, Any] = {name: np.ascontiguousarray(part.T) for name, part in found.items()}
        return QTensor(**parts, bits=kind.bits)
    return _kept_kernel(source, slot, kind)


def _kept_kernel(source: GgufWeights, slot: Slot, kind: BlockKind) -> QTensor:
    parts: list[dict[str, Any]] = []
    for name in slot.names:
        index = None if slot.rows is None else slot.index()[:1]
        parts.append(_from_blocks(source.read_blocks(name, kind.nbytes, index), kind))
    stacked: dict[str, Any] = {
        part: np.stack([one[part] for one in parts]).reshape(*slot.stack, *parts[0][part].shape) for part in parts[0]
    }
    return QTensor(**stacked, bits=kind.bits)


def kept_shapes(slot: Slot, kind: BlockKind) -> QTensor:
    """Shapes and dtypes of `kept_leaf`."""
    *stack, rows, columns = slot.leaf_shape[::-1] if _is_table(slot) else slot.leaf_shape

    def part(rows: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((columns, rows) if _is_table(slot) else (*stack, rows, columns), dtype)

    values = part(rows * kind.bits // 8, jnp.int8 if kind.bits == 8 else jnp.uint8)
    scales = part(rows // BLOCK, jnp.float16)
    return QTensor(values, scales, lows=scales if kind.has_low else None, bits=kind.bits)


def _is_table(slot: Slot) -> bool:
    return slot.path in (("embed", "embedding"), ("head", "kernel"))


def _from_blocks(raw: np.ndarray, kind: BlockKind) -> dict[str, Any]:
    """Blocks of the rows of a matrix, [out, in / 32, bytes], as parts of a `QTensor`."""
    split = 2 * (1 + kind.has_low)
    numbers = np.ascontiguousarray(raw[..., :split]).view(np.float16)
    found = {"scales": np.ascontiguousarray(numbers[..., 0].T)}
    if kind.has_low:
        found["lows"] = np.ascontiguousarray(numbers[..., 1].T)
    integers = raw[..., split:]
    if kind.bits == 4:  # a byte holds integers j and j + 16 of its block; here neighbours share a byte
        integers = np.concatenate([integers & 15, integers >> 4], axis=-1)
        integers = integers[..., ::2] | integers[..., 1::2] << 4
    flat = np.ascontiguousarray(integers.reshape(raw.shape[0], -1).T)
    found["values"] = flat.view(np.int8) if kind.bits == 8 else flat
    return found
