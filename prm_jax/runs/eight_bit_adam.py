"""Adam's moments in 8 bits: a logarithmic code per element, a scale per row, and unbiased rounding.

Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), store both moments in a non-linear
8-bit code with one scale per block. Here the code is logarithmic, so that the relative error is the same at every
magnitude, and a block is a row (the last axis) of a leaf, so that codes have the leaf's shape and are sharded like it.
An update changes a moment by a small part of itself, often by less than half a step of the code: rounding to nearest
would lose it, and rounding up or down at random, with the mean unchanged, does not. The random numbers are a hash of
the update's number and the element's place, so that a resumed run has the same bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any

MIN_SIZE = 4096
"""Leaves with fewer elements keep float32 moments, as do vectors and rows of fewer than `MIN_ROW` elements."""
MIN_ROW = 16
FIRST_STEPS = 6
"""Codes per octave of the first moment: relative steps of 12 %, magnitudes down to 2^-21 of the row's largest."""
SECOND_STEPS = 8
"""Codes per octave of the second moment: relative steps of 9 %, magnitudes down to 2^-31 of the row's largest."""


class Moments8Bit(NamedTuple):
    """State of `scale_by_adam_8bit`.

    Attributes:
      updates: [] int32, how many there have been.
      mu, nu: codes with the leaves' shapes, int8 and uint8; small leaves are float32 moments themselves.
      mu_scale, nu_scale: [..., 1] float32, the largest magnitude of each row, rounded up to the code's grid; small
        leaves have one unused element.
    """

    updates: jax.Array
    mu: Params
    mu_scale: Params
    nu: Params
    nu_scale: Params


def scale_by_adam_8bit(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with moments in 8 bits: 2 bytes and 8 bytes per row instead of 8 bytes per element.

    Args:
      b1, b2: decays of the moments.
      eps: added to the square root of the second moment.
    """

    def init(params: Params) -> Moments8Bit:
        def codes(dtype: Any) -> Params:
            return jax.tree.map(lambda p: jnp.zeros(p.shape, dtype if is_coded(p) else jnp.float32), params)

        def scales() -> Params:
            return jax.tree.map(lambda p: jnp.zeros(_scale_shape(p), jnp.float32), params)

        return Moments8Bit(jnp.zeros((), jnp.int32), codes(jnp.int8), scales(), codes(jnp.uint8), scales())

    def update(grads: Params, state: Moments8Bit, params: Params | None = None) -> tuple[Params, Moments8Bit]:
        del params
        count = optax.safe_increment(state.updates)
        leaves, tree = jax.tree.flatten(grads)
        stored = [jax.tree.leaves(part) for part in state[1:]]
        results = [
            _update(index, leaf, count, kept, b1, b2, eps)
            for index, (leaf, *kept) in enumerate(zip(leaves, *stored, strict=True))
        ]
        updates, *moments = (jax.tree.unflatten(tree, part) for part in zip(*results, strict=True))
        return updates, Moments8Bit(count, *moments)

    return optax.GradientTransformation(init, update)


def is_coded(leaf: Any) -> bool:
    """Whether the moments of a leaf are kept in 8 bits."""
    return leaf.ndim > 1 and leaf.size >= MIN_SIZE and leaf.shape[-1] >= MIN_ROW


def encode(x: jax.Array, uniform: jax.Array, *, steps: int, signed: bool) -> tuple[jax.Array, jax.Array]:
    """Rounds numbers to logarithmic codes.

    The code c > 0 stands for ``scale * 2^((c - most) / steps)``, with ``most`` 127 or 255, and 0 for 0. Between two
    codes a number is rounded to either with the probabilities that keep its mean. Below the least one, signed numbers
    are rounded to it or to 0 in the same way, and unsigned ones up to it, which makes Adam's updates smaller.

    Args:
      x: [..., N] f32; not negative unless `signed`.
      uniform: [..., N] f32 in [0, 1), independent of `x`.
      steps: codes per factor of 2.
      signed: int8 codes with the number's sign, otherwise uint8.

    Returns:
      (codes [..., N], scales [..., 1] f32).
    """
    most = 127 if signed else 255
    size = jnp.abs(x)
    largest = jnp.max(size, axis=-1, keepdims=True)
    # On the grid of the codes: a scale that changes moves the other codes by whole steps, and adds no rounding.
    scale = jnp.exp2(jnp.ceil(_log2(largest) * steps - 1e-3) / steps)
    level = most + steps * (_log2(size) - _log2(scale))
    below = jnp.clip(jnp.floor(level), 1.0, most)
    low = scale * jnp.exp2((below - most) / steps)
    share = (size / low - 1.0) / (2.0 ** (1.0 / steps) - 1.0)
    code = jnp.minimum(below + (uniform < share), most)
    least = (uniform < size / low).astype(jnp.float32) if signed else jnp.ones_like(size)
    code = jnp.where(level < 1.0, least, code)
    code = jnp.where(size > 0, code, 0.0) * (jnp.sign(x) if signed else 1.0)
    return code.astype(jnp.int8 if signed else jnp.uint8), jnp.where(largest > 0, scale, 0.0)


def decode(code: jax.Array, scale: jax.Array, *, steps: int, signed: bool) -> jax.Array:
    """The numbers that codes stand for; f32."""
    most = 127 if signed else 255
    number = code.astype(jnp.float32)
    size = scale * jnp.exp2((jnp.abs(number) - most) / steps)
    return jnp.sign(number) * size


def _update(
    index: int, grad: jax.Array, count: jax.Array, stored: list[jax.Array], b1: float, b2: float, eps: float
) -> tuple[jax.Array, ...]:
    """(update, first moment, its scales, second moment, its scales) of one leaf."""
    mu, mu_scale, nu, nu_scale = stored
    coded, g = is_coded(grad), grad.astype(jnp.float32)
    m = decode(mu, mu_scale, steps=FIRST_STEPS, signed=True) if coded else mu
    v = decode(nu, nu_scale, steps=SECOND_STEPS, signed=False) if coded else nu
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * jnp.square(g)
    correction = 1 - b1**count, 1 - b2**count
    update = (m / correction[0]) / (jnp.sqrt(v / correction[1]) + eps)
    if not coded:
        return update, m, mu_scale, v, nu_scale
    noise = _uniform(grad.shape, count, index)
    new_mu, mu_scale = encode(m, noise, steps=FIRST_STEPS, signed=True)
    new_nu, nu_scale = encode(v, 1.0 - noise, steps=SECOND_STEPS, signed=False)
    return update, new_mu, mu_scale, new_nu, nu_scale


def _uniform(shape: tuple[int, ...], count: jax.Array, index: int) -> jax.Array:
    """Numbers in (0, 1), a hash of the update's number, the leaf's and the element's; the same on any mesh."""
    start = count.astype(jnp.uint32) * np.uint32(0x9E3779B1) + np.uint32(0x85EBCA77 * (index + 1) % 2**32)
    word = jnp.full(shape, start)
    for axis in range(len(shape)):
        word = _mix(word ^ jax.lax.broadcasted_iota(jnp.uint32, shape, axis))
    return ((word >> 9).astype(jnp.float32) + 0.5) * np.float32(2.0**-23)


def _mix(h: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3, a bijection of the word."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _log2(x: jax.Array) -> jax.Array:
    return jnp.log2(jnp.maximum(x, jnp.finfo(jnp.float32).tiny))


def _scale_shape(leaf: Any) -> tuple[int, ...]:
    return (*leaf.shape[:-1], 1) if is_coded(leaf) else (1,) * leaf.ndim
