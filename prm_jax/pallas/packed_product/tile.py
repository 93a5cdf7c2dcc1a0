"""The tile of a packed matrix that a kernel works on, and the static part of a product."""

import dataclasses
import math

_LANES = 128
_TOKENS, _TOKEN_PIECE, _PACKED, _PIECE, _COLUMNS = 512, 128, 1024, 256, 512
"""Sizes of a tile and its pieces at most, where the matrix can be divided; programs are compiled for single pieces."""
_WHOLE = 768
"""Sizes up to which a dimension without a divisor is one block."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A kernel's tile.

    Attributes:
      tokens: rows of activations.
      token_piece: how many of them are multiplied at once; divides ``tokens``.
      packed: rows of the packed matrix.
      piece: how many of them are expanded at once; divides ``packed``.
      columns: of the packed matrix.
    """

    tokens: int
    token_piece: int
    packed: int
    piece: int
    columns: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static part of a product.

    Attributes:
      blocks: the tile.
      bits: of an integer.
      zero: subtracted where there are no zeros.
      groups: of the matrix, with one row of scales, zeros and lows each.
      there: which of scales, zeros and lows there are.
      interpret: run on the CPU.
    """

    blocks: Blocks
    bits: int
    zero: float
    groups: int
    there: tuple[bool, ...]
    interpret: bool


def choose_blocks(count: int, rows: int, columns: int, groups: int) -> Blocks | None:
    """A tile for `count` rows of activations and a packed matrix [rows, columns], or None if it cannot be divided.

    Rows and columns of the tile divide the matrix, so that no sum contains undefined numbers.
    """
    step = math.lcm(_LANES, rows // groups) if groups > 1 else _LANES
    packed, wide = _divisor(rows, step, _PACKED), _divisor(columns, _LANES, _COLUMNS)
    if packed is None or wide is None:
        return None
    piece = _divisor(packed, step, _PIECE) or packed
    token_piece = min(_TOKEN_PIECE, -(-count // 16) * 16)
    return Blocks(min(_TOKENS, -(-count // token_piece) * token_piece), token_piece, packed, piece, wide)


def _divisor(size: int, step: int, most: int) -> int | None:
    """The largest multiple of `step` up to `most` that divides a size; else all of a small one."""
    found = [block for block in range(step, most + 1, step) if size % block == 0]
    return found[-1] if found else size if size <= _WHOLE else None
