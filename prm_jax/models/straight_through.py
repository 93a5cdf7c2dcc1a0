"""Training through rounded weights: the trust estimator of QuEST (arXiv:2502.05003)."""

import functools

import jax
import jax.numpy as jnp

from prm_jax.models.qtensor import hadamard_block, rotate
from prm_jax.models.rounding import NORMAL_CLIP


def round_through(w: jax.Array, *, bits: int, hadamard: bool = True) -> jax.Array:
    """Weights rounded to few bits, whose gradient reaches the weights that the rounding can be trusted for.

    Each column is rounded to odd multiples of half a step, with the largest level at ``NORMAL_CLIP[bits]`` times its
    root mean square. The gradient passes unchanged where ``|rounded - w| <= step / 2`` and is 0 elsewhere, for weights
    far beyond the largest level (Algorithm 1).

    Args:
      w: [..., in, out] float; receives gradients.
      bits: 1 to 8.
      hadamard: round in blocks rotated along the inputs, and rotate back.

    Returns:
      [..., in, out] in the dtype of `w`; a column of zeros stays zero.
    """
    block = hadamard_block(w.shape[-2]) if hadamard else 1
    if block == 1:
        return _rounded(w, bits)
    turned = _rounded(jnp.swapaxes(rotate(jnp.swapaxes(w, -1, -2), block), -1, -2), bits)
    return jnp.swapaxes(rotate(jnp.swapaxes(turned, -1, -2), block), -1, -2)


def trusted(w: jax.Array, bits: int) -> jax.Array:
    """[..., in, out] bool: which weights the gradient of ``round_through`` (without rotation) reaches."""
    rounded, step = _levels(w, bits)
    return jnp.abs(rounded - w.astype(jnp.float32)) <= step * (0.5 + 1e-6)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rounded(w: jax.Array, bits: int) -> jax.Array:
    return _levels(w, bits)[0].astype(w.dtype)


def _forward(w: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    return _rounded(w, bits), trusted(w, bits)


def _backward(bits: int, mask: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(mask, gradient, 0),)


_rounded.defvjp(_forward, _backward)


def _levels(w: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """(rounded [..., in, out] f32, step [..., 1, out])."""
    w = w.astype(jnp.float32)
    step = 2 * NORMAL_CLIP[bits] * jnp.sqrt(jnp.mean(w * w, axis=-2, keepdims=True)) / (2**bits - 1)
    half = 2 ** (bits - 1)
    units = jnp.clip(jnp.floor(w / jnp.where(step > 0, step, 1.0)), -half, half - 1) + 0.5
    return units * step, step
