"""One tile of the logits: its computation, its contribution to the row statistics, and its gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prm_jax.pallas.linear_logprob.blocking import VocabBlocks
from prm_jax.pallas.linear_logprob.problem import Outputs, Spec

MASKED = -1e30  # finite, so that the running maximum never meets inf - inf


class Columns(NamedTuple):
    """A block of the vocabulary."""

    head: jax.Array  # [vocab block, D] or [D, vocab block] in hidden's dtype
    bias: jax.Array | None  # [vocab block] float32
    ids: jax.Array  # [vocab block] int32
    fresh: jax.Array | None  # [vocab block] bool, False for columns that are in the block before

    def hit(self, tokens: jax.Array) -> jax.Array:
        """[token block, vocab block] bool, True where a column is the row's token."""
        hit = tokens[:, None] == self.ids
        return hit if self.fresh is None else hit & self.fresh


class Stats(NamedTuple):
    """The running statistics of rows: maximum, sum of exp, target logit, sum of exp times logit."""

    top: jax.Array
    total: jax.Array
    target: jax.Array
    moment: jax.Array | None

    def lse(self) -> jax.Array:
        """Log-sum-exp of the columns so far."""
        return self.top + jnp.log(self.total)


def columns(spec: Spec, head: jax.Array, bias: jax.Array | None, vocab: VocabBlocks, j: Any, dtype: Any) -> Columns:
    """Block j of the vocabulary; its head is gathered here where it is split over ``spec.gather_axes``."""
    block = vocab.take(head, j, spec.vocab_axis).astype(dtype)
    if spec.gather_axes:
        block = jax.lax.all_gather(block, spec.gather_axes, axis=1 - spec.vocab_axis, tiled=True)
    block_bias = None if bias is None else vocab.take(bias, j).astype(jnp.float32)
    return Columns(block, block_bias, *vocab.columns(j))


def logits(
    spec: Spec, block: Columns, hidden: jax.Array, inverse_temperature: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """The tile [token block, vocab block], and the derivative of the soft cap; float32."""
    tile = jnp.einsum(f"td,{spec.head_layout}->tv", hidden, block.head, preferred_element_type=jnp.float32)
    if block.bias is not None:
        tile = tile + block.bias
    slope = None
    if spec.softcap is not None:
        squashed = jnp.tanh(tile / spec.softcap)
        tile, slope = spec.softcap * squashed, 1.0 - squashed * squashed
    if inverse_temperature is not None:
        tile = tile * inverse_temperature[:, None]
    if block.fresh is not None:
        tile = jnp.where(block.fresh, tile, MASKED)
    return tile, slope


def merge(stats: Stats, tile: jax.Array, hit: jax.Array) -> Stats:
    """One step of the online log-sum-exp (arXiv:1805.02867, algorithm 3)."""
    top = jnp.maximum(stats.top, jnp.max(tile, axis=1))
    scale = jnp.exp(stats.top - top)
    weights = jnp.exp(tile - top[:, None])
    moment = stats.moment
    if moment is not None:
        # From its own copy, so that the other statistics have the same bits with and without the entropy.
        copy, copy_top = jax.lax.optimization_barrier((tile, top))
        moment = moment * scale + jnp.sum(jnp.exp(copy - copy_top[:, None]) * copy, axis=1)
    return Stats(
        top=top,
        total=stats.total * scale + jnp.sum(weights, axis=1),
        target=stats.target + jnp.sum(jnp.where(hit, tile, 0.0), axis=1),
        moment=moment,
    )


def outputs(stats: Stats, tokens: jax.Array, vocab: int) -> Outputs:
    """The statistics of complete rows."""
    lse = stats.lse()
    entropy = None if stats.moment is None else lse - stats.moment / stats.total
    known = (tokens >= 0) & (tokens < vocab)
    return Outputs(lse, jnp.where(known, stats.target, jnp.nan), entropy)


def gradient(
    block: Columns,
    log_p: jax.Array,
    slope: jax.Array | None,
    tokens: jax.Array,
    inverse_temperature: jax.Array | None,
    out: Outputs,
    cotangent: Outputs,
) -> jax.Array:
    """``dloss/d(hidden . head + bias)`` of a tile, float32; a cotangent of None is zero.

    With ``p = softmax(l)``: dlse/dl = p, dtarget/dl = one-hot, dentropy/dl = -p (log p + entropy).
    """
    weight: Any = 0.0
    if cotangent.lse is not None:
        weight = cotangent.lse[:, None]
    if cotangent.entropy is not None:
        assert out.entropy is not None
        weight = weight - cotangent.entropy[:, None] * (log_p + out.entropy[:, None])
    d = jnp.exp(log_p) * weight
    if cotangent.target is not None:
        d = d + jnp.where(block.hit(tokens), cotangent.target[:, None], 0.0)
    if block.fresh is not None:
        d = jnp.where(block.fresh, d, 0.0)
    if inverse_temperature is not None:
        d = d * inverse_temperature[:, None]
    return d if slope is None else d * slope
