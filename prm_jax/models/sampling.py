"""Sampling the next token: temperature, top-k, top-p and min-p, with per-row randomness.

Two things differ from the usual Gumbel-max over sorted logits.  A token is drawn by inverting the cumulative
distribution with two uniforms per row instead of V, and the truncations find their threshold by bisection over
the bits of a float instead of sorting the vocabulary.  Both are exact up to float32 rounding.

Top-k: arXiv 1805.04833 section 5.4.  Top-p: arXiv 1904.09751 section 3.1.  Min-p: arXiv 2407.01082 section 3.
"""

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from prm_jax.errors import UserError

Array = jax.Array

_SINGLE_STAGE = 512  # up to this vocabulary one cumulative sum is cheaper than two
_BLOCK = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; a pytree whose leaves may change without recompilation.

    A field that is None is absent from the compiled code, so enabling or disabling a truncation recompiles, and
    changing its value does not.

    Attributes:
      temperature: f32 scalar > 0, or None for greedy decoding (the other fields are then ignored).
      top_k: i32 scalar >= 1, or None for no limit.
      top_p: f32 scalar in (0, 1), or None for no limit.
      min_p: f32 scalar in (0, 1], or None for no limit.
    """

    temperature: Array | None
    top_k: Array | None = None
    top_p: Array | None = None
    min_p: Array | None = None


def make_sampling(
    *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Sampling:
    """Checks sampling options and converts them to a `Sampling`.

    Args:
      temperature: divides the logits; >= 0, and 0 means greedy decoding.
      top_k: keeps the k most probable tokens (and what ties with the last of them); 0 keeps all.
      top_p: then keeps the smallest set of most probable tokens whose share of the remaining mass reaches
        `top_p` (and what ties with the last of them); in (0, 1], 1 keeps all.
      min_p: then keeps tokens at least `min_p` times as probable as the most probable one; in [0, 1], 0 keeps
        all.

    Returns:
      A `Sampling`.  At temperature 0 the truncations are dropped, since the most probable token survives all of
      them.

    Raises:
      UserError: an option is outside its range.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature is {temperature}; expected a finite number >= 0 (0 = greedy decoding)")
    if top_k < 0 or int(top_k) != top_k:
        raise UserError(f"top_k is {top_k}; expected an integer >= 0 (0 = keep every token)")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; expected a number in (0, 1] (1 = keep every token)")
    if not 0 <= min_p <= 1:
        raise UserError(f"min_p is {min_p}; expected a number in [0, 1] (0 = keep every token)")
    if temperature == 0:
        return Sampling(None)
    return Sampling(
        jnp.float32(temperature),
        jnp.int32(top_k) if top_k > 0 else None,
        jnp.float32(top_p) if top_p < 1 else None,
        jnp.float32(min_p) if min_p > 0 else None,
    )


def row_uniforms(key: Array, prompt_ids: Array, *, samples: int, steps: int) -> Array:
    """All the randomness of a generation: two uniforms per row and step.

    A row's numbers depend only on the key, its prompt's id, its index among the prompt's samples and the step, and
    not on the other rows or on the number of rows or steps.

    Args:
      key: typed PRNG key, consumed.
      prompt_ids: [P] i32 >= 0, identify the prompts.
      samples: G, rows per prompt.
      steps: R, tokens per row.

    Returns:
      [R, P * G, 2] f32 in [0, 1), rows prompt-major (row = p * G + g).
    """
    chex.assert_rank(prompt_ids, 1)
    rows = jax.vmap(jax.vmap(row_uniform, in_axes=(None, None, 0, None)), in_axes=(None, 0, None, None))
    over_steps = jax.vmap(rows, in_axes=(None, None, None, 0))
    uniforms = over_steps(key, prompt_ids, jnp.arange(samples), jnp.arange(steps))
    return uniforms.reshape(steps, -1, 2)


def row_uniform(key: Array, prompt_id: Array, sample: Array, step: Array) -> Array:
    """The two uniforms [2] of one row and step, see `row_uniforms`; all arguments are scalars."""
    own = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample), step)
    return jax.random.uniform(own, (2,))


class Draw(NamedTuple):
    """One token per row.

    Attributes:
      tokens: [B] i32.
      logp: [B] f32, log-probability under softmax(logits / temperature) *before* any truncation (temperature 1 when
        greedy).
      log_mass: [B] f32 <= 0, log of the probability that truncation keeps: the token was drawn with probability
        exp(logp - log_mass). 0 without truncation; equal to `logp` when greedy.
    """

    tokens: Array
    logp: Array
    log_mass: Array


def sample(logits: Array, uniforms: Array, sampling: Sampling) -> Draw:
    """Draws one token per row.

    Args:
      logits: [B, V] float, any dtype; -inf bans a token.
      uniforms: [B, 2] f32 in [0, 1), from `row_uniforms`; unused when greedy.
      sampling: what to draw from.

    Returns:
      The tokens with their log-probabilities.
    """
    chex.assert_rank(logits, 2)
    chex.assert_shape(uniforms, (logits.shape[0], 2))
    logits = logits.astype(jnp.float32)
    if sampling.temperature is not None:
        logits = logits / sampling.temperature
    top = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    if sampling.temperature is None:
        tokens, kept = jnp.argmax(logits, axis=-1).astype(jnp.int32), weights
    else:
        kept = truncate(weights, sampling)
        tokens = draw(kept, uniforms)
    total = weights.sum(axis=-1)
    logp = jnp.take_along_axis(logits - top, tokens[:, None], axis=-1)[:, 0] - jnp.log(total)
    if sampling.temperature is None:
        return Draw(tokens, logp, logp)
    log_mass = jnp.zeros_like(logp) if kept is weights else jnp.log(kept.sum(axis=-1)) - jnp.log(total)
    return Draw(tokens, logp, log_mass)


def truncate(weights: Array, sampling: Sampling) -> Array:
    """Zeroes the weights of the tokens that top-k, then top-p, then min-p leave out.

    Args:
      weights: [..., V] f32 >= 0, unnormalised probabilities whose maximum is 1.
      sampling: which truncations to apply; its temperature is ignored.

    Returns:
      [..., V] f32, `weights` or 0.  At least one weight per row survives.
    """
    if sampling.top_k is not None:
        ones = jnp.ones_like(weights)
        count = jnp.minimum(sampling.top_k, weights.shape[-1]).astype(jnp.float32)
        weights = _keep_smallest_set(weights, ones, jnp.broadcast_to(count, weights.shape[:-1]))
    if sampling.top_p is not None:
        weights = _keep_smallest_set(weights, weights, sampling.top_p * weights.sum(axis=-1))
    if sampling.min_p is not None:
        weights = jnp.where(weights >= sampling.min_p, weights, 0.0)
    return weights


def draw(weights: Array, uniforms: Array) -> Array:
    """Draws an index with probability proportional to its weight, by inverting the cumulative distribution.

    A large vocabulary is cut into blocks: the first uniform picks the block, the second the token inside it,
    so that a rare token's probability keeps its relative precision within its block.

    Args:
      weights: [B, V] f32 >= 0 with a positive sum.
      uniforms: [B, 2] f32 in [0, 1).

    Returns:
      [B] i32 in [0, V).  An index of weight 0 is never drawn (a row without positive weights, for example after a
      NaN, gives 0).
    """
    batch, vocab = weights.shape
    if vocab <= _SINGLE_STAGE:
        return _invert(weights, uniforms[:, 0])
    blocks = -(-vocab // _BLOCK)
    weights = jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - vocab))).reshape(batch, blocks, _BLOCK)
    block = _invert(weights.sum(axis=-1), uniforms[:, 0])
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _invert(inside, uniforms[:, 1])


def _invert(weights: Array, uniform: Array) -> Array:
    """[B, n] f32, [B] -> [B] i32: the first index whose cumulative weight exceeds that share of the total."""
    n = weights.shape[-1]
    # A product with a triangle is one fast operation on every platform; a cumulative sum is log2(n) small ones on CPU.
    triangle = jnp.triu(jnp.ones((n, n), jnp.float32))
    cumulative = jnp.dot(weights, triangle, precision=lax.Precision.HIGHEST)
    reached = cumulative > (uniform * cumulative[:, -1])[:, None]
    # Rounding may step up at an index of weight 0, hence the second condition.
    return jnp.argmax(reached & (weights > 0), axis=-1).astype(jnp.int32)


def _keep_smallest_set(weights: Array, measure: Array, target: Array) -> Array:
    """Keeps the largest weights whose measures sum to at least the target, and ties with the smallest of them.

    Finds the greatest threshold t with sum(measure[weights >= t]) >= target, bit by bit from the top:
    non-negative floats are ordered as their bit patterns are.
    """

    def try_bit(i: Array, bits: Array) -> Array:
        candidate = bits | lax.shift_left(
            jnp.int32(1), jnp.int32(29) - i
        )  # weights are <= 1: bit 30 is never set
        kept = weights >= lax.bitcast_convert_type(candidate, jnp.float32)[..., None]
        return jnp.where(jnp.where(kept, measure, 0.0).sum(axis=-1) >= target, candidate, bits)

    bits = lax.fori_loop(0, 30, try_bit, jnp.zeros(weights.shape[:-1], jnp.int32))
    return jnp.where(weights >= lax.bitcast_convert_type(bits, jnp.float32)[..., None], weights, 0.0)
