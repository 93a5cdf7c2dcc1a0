"""Rounding of one matrix to integers with scales, which are fitted per group of neighbouring inputs and output.

Group-wise and two-level scales are those of QServe (arXiv:2405.04532), five levels at two bits those of ABQ-LLM
(arXiv:2408.08554), centred levels with the scale that is optimal for normal weights those of QuEST (arXiv:2502.05003).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prm_jax.models.qtensor import Grid, QTensor, integers_per_byte, offset, pack
from prm_jax.models.quantization_options import Fit, Scheme

NORMAL_CLIP = {1: 0.7979, 2: 1.4935, 3: 2.0511, 4: 2.5139, 5: 2.9161, 6: 3.2766, 7: 3.6010, 8: 3.8849}
"""Bits -> the largest level in standard deviations that has the least squared error on a normal distribution
(arXiv:2502.05003, the table of its released code)."""

COARSE_TOP = 119
"""Largest first-level integer of the progressive scheme, so that the second level cannot leave 8 bits."""

_RATIOS = 33
"""Clipping ratios that the fit "mse" tries, evenly spaced from 1 down to `_LEAST`."""
_LEAST = 0.4


class Levels(NamedTuple):
    """Integers with their scales, all with the groups as an axis of their own.

    Attributes:
      integers: [..., G, g, out] f32, as they are stored.
      scales: [..., G, 1, out].
      zeros: [..., G, 1, out] stored integer that stands for 0; None if that is `shift` everywhere.
      shift: see ``qtensor.offset``.
    """

    integers: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    shift: float = 0.0

    @property
    def values(self) -> jax.Array:
        """What they stand for, [..., G, g, out]."""
        return (self.integers - (self.shift if self.zeros is None else self.zeros)) * self.scales


def round_matrix(w: jax.Array, *, bits: int, group: int, scheme: Scheme, fit: Fit) -> QTensor:
    """The nearest matrix of a scheme.

    Args:
      w: [..., in, out] float.
      bits: 8, 4 or 2.
      group: neighbouring inputs that share a scale; divides in.
      scheme: symmetric: whole numbers around 0. asymmetric: from the least to the largest weight, with a zero point.
        progressive: int8 per output first, then asymmetric 4 bits with integer scales. balanced: five levels at 2 bits.
        centred: odd multiples of half a step.
      fit: of the scales. largest: the largest weight is representable; mse: least squared error among clipping ratios;
        normal: least squared error if the weights of a group are normal (centred only).

    Returns:
      The tensor; groups that are all zero stay zero, with the centred scheme up to rounding.
    """
    w = w.astype(jnp.float32)
    *lead, rows, columns = w.shape
    grouped = w.reshape(*lead, rows // group, group, columns)
    if scheme == "progressive":
        return _progressive(grouped, bits, group)
    grid: Grid = {"balanced": "five", "centred": "centred"}.get(scheme, "integer")  # type: ignore[assignment]
    dtype = jnp.float32 if group == rows else jnp.bfloat16
    if scheme == "asymmetric":
        found = _fitted(grouped, fit, lambda ratio: _asymmetric(grouped, bits, ratio, dtype))
    elif fit == "normal":
        deviation = jnp.sqrt(jnp.mean(grouped * grouped, axis=-2, keepdims=True))
        found = _symmetric(grouped, bits, grid, NORMAL_CLIP[bits] * deviation, dtype)
    else:
        largest = jnp.abs(grouped).max(-2, keepdims=True)
        found = _fitted(grouped, fit, lambda ratio: _symmetric(grouped, bits, grid, ratio * largest, dtype))
    signed = bits == 8 and grid == "integer" and found.zeros is None
    flat = found.integers.reshape(*lead, rows, columns)
    padding = -rows % integers_per_byte(bits, grid)
    if padding:
        flat = jnp.pad(flat, [(0, 0)] * len(lead) + [(0, padding), (0, 0)])
    return QTensor(
        pack(flat.astype(jnp.int8 if signed else jnp.uint8), bits, grid),
        found.scales.squeeze(-2).astype(dtype),
        None if found.zeros is None else found.zeros.squeeze(-2).astype(jnp.uint8),
        bits=bits, grid=grid, padding=padding,
    )  # fmt: skip


def round_table(table: jax.Array) -> QTensor:
    """A table [V, D] in 8 bits, symmetric, with one scale per row."""
    table = table.astype(jnp.float32)
    scales = jnp.abs(table).max(-1, keepdims=True) / 127
    values = jnp.round(table / _nonzero(scales))
    return QTensor(jnp.clip(values, -127, 127).astype(jnp.int8), scales)


def _symmetric(w: jax.Array, bits: int, grid: Grid, largest: jax.Array, dtype: jnp.dtype) -> Levels:
    """Levels up to +-largest [..., G, 1, out]."""
    top = {"integer": 2.0 ** (bits - 1) - 1, "centred": (2.0**bits - 1) / 2, "five": 2.0}[grid]
    scales = _stored(largest / top, dtype)
    units, shift = w / _nonzero(scales), offset(bits, grid)
    if grid == "centred":
        return Levels(jnp.clip(jnp.round(units + shift), 0, 2**bits - 1), scales, None, shift)
    return Levels(jnp.clip(jnp.round(units), -top, top) + shift, scales, None, shift)


def _asymmetric(w: jax.Array, bits: int, ratio: jax.Array, dtype: jnp.dtype) -> Levels:
    top = 2.0**bits - 1
    low = ratio * jnp.minimum(w.min(-2, keepdims=True), 0.0)
    high = ratio * jnp.maximum(w.max(-2, keepdims=True), 0.0)
    scales = _stored((high - low) / top, dtype)
    zeros = jnp.clip(jnp.round(-low / _nonzero(scales)), 0, top)
    return Levels(jnp.clip(jnp.round(w / _nonzero(scales)) + zeros, 0, top), scales, zeros)


def _progressive(w: jax.Array, bits: int, group: int) -> QTensor:
    """int8 per output, then asymmetric with integer scales and zeros per group (arXiv:2405.04532, section 4.1)."""
    *lead, groups, _, columns = w.shape
    coarse = jnp.abs(w).max((-3, -2), keepdims=True) / COARSE_TOP
    first = jnp.clip(jnp.round(w / _nonzero(coarse)), -COARSE_TOP, COARSE_TOP)
    top = 2.0**bits - 1
    low = jnp.minimum(first.min(-2, keepdims=True), 0.0)
    high = jnp.maximum(first.max(-2, keepdims=True), 0.0)
    scales = jnp.maximum(jnp.round((high - low) / top), 1.0)
    zeros = jnp.clip(jnp.round(-low / scales), 0, top)
    integers = jnp.clip(jnp.round(first / scales) + zeros, 0, top).reshape(*lead, groups * group, columns)
    return QTensor(
        pack(integers.astype(jnp.uint8), bits),
        scales.squeeze(-2).astype(jnp.uint8),
        zeros.squeeze(-2).astype(jnp.uint8),
        coarse.squeeze(-2),
        bits=bits,
    )


def _fitted(w: jax.Array, fit: Fit, levels: Callable[[jax.Array], Levels]) -> Levels:
    """The levels of the clipping ratio with the least squared error, for each group and output on its own."""
    if fit == "largest":
        return levels(jnp.float32(1.0))

    def error(ratio: jax.Array) -> jax.Array:
        return jnp.square(w - levels(ratio).values).sum(-2, keepdims=True)

    def better(best: tuple[jax.Array, jax.Array], ratio: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        least, chosen = best
        now = error(ratio)
        return (jnp.minimum(now, least), jnp.where(now < least, ratio, chosen)), None

    begin = error(jnp.float32(1.0)), jnp.ones_like(w.max(-2, keepdims=True))
    (_, chosen), _ = jax.lax.scan(better, begin, jnp.linspace(1.0, _LEAST, _RATIOS)[1:])
    return levels(chosen)


def _stored(scales: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Scales as they will be stored, so that integers are rounded against the very scales that expand them."""
    return scales.astype(dtype).astype(jnp.float32)


def _nonzero(scales: jax.Array) -> jax.Array:
    return jnp.where(scales > 0, scales, 1.0)
