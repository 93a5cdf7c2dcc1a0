"""Scoring and updating in pieces of a batch: minibatches, microbatches and epochs, on one device or a mesh."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from prm_jax.models import ModelConfig, TokenStatistics, hidden_states, token_statistics, value_head
from prm_jax.prime.batch import Batch, Metrics
from prm_jax.prime.sizes import pieces_of_tokens
from prm_jax.runs.learner import Params, merge_rows, split_rows


class Pieces(Protocol):
    """Options of an update: into what a batch is divided, and how often it is used."""

    @property
    def minibatches(self) -> int: ...
    @property
    def microbatches(self) -> int: ...
    @property
    def microbatch_tokens(self) -> int: ...
    @property
    def epochs(self) -> int: ...


def batch_logprobs(config: ModelConfig, params: Params, batch: Batch, temperature: float = 1.0) -> jax.Array:
    """Log-probs [B, T] of the responses; 0 outside them."""
    return batch_statistics(config, params, batch, temperature).logp


def batch_statistics(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    load: bool = False,
) -> TokenStatistics:
    """Log-probs [B, T] of the responses, and what else one forward pass says about their tokens.

    Args:
      config: the model.
      params: its parameters.
      batch: packed or not.
      temperature: of the log-probs.
      entropy: whether to compute the entropy [B, T] of the distribution that each token was drawn from.
      load: whether to sum the load of a sparse model's experts; None comes back for a dense one.
    """
    rows, load = batch.packed, load and config.num_experts > 0
    if rows is None:
        return token_statistics(
            config, params, batch.tokens, batch.mask, temperature=temperature, start=batch.start, entropy=entropy,
            load=load,
        )  # fmt: skip
    found = token_statistics(
        config, params, rows.tokens, rows.scored, temperature=temperature, segment_ids=rows.segment_ids,
        entropy=entropy, load=load,
    )  # fmt: skip
    logp, by_token = (None if x is None else unpacked(x, batch) for x in found[:2])
    assert logp is not None
    return TokenStatistics(logp, by_token, found.load)


def batch_values(config: ModelConfig, params: Params, head: Params, batch: Batch) -> jax.Array:
    """Values [B, T] float32 of a value head after each token; arbitrary and finite on padding."""
    rows = batch.packed
    if rows is None:
        return value_head(head, hidden_states(config, params, batch.tokens))[..., 0].astype(jnp.float32)
    hidden = hidden_states(config, params, rows.tokens, segment_ids=rows.segment_ids)
    return unpacked(value_head(head, hidden)[..., 0].astype(jnp.float32), batch, masked=False)


def unpacked(values: jax.Array, batch: Batch, *, masked: bool = True) -> jax.Array:
    """Values [R, W] of packed rows as [B, T], one row per response.

    Args:
      values: of `batch.packed`.
      batch: one that is packed.
      masked: 0 outside the responses; otherwise what the packed rows have there.
    """
    assert batch.packed is not None
    columns, chunk = batch.mask.shape[1], batch.packed.chunk
    chunks = batch.mask.shape[0] // chunk
    flat = jnp.pad(values.reshape(chunks, -1), ((0, 0), (0, columns)))  # a slice may reach beyond the last row
    place = batch.packed.place.reshape(chunks, chunk)

    def of_chunk(flat: jax.Array, place: jax.Array) -> jax.Array:
        return jax.vmap(lambda first: jax.lax.dynamic_slice_in_dim(flat, first, columns))(place)

    rows = jax.vmap(of_chunk)(flat, place).reshape(batch.mask.shape)
    return jnp.where(batch.mask, rows, 0.0) if masked else rows


def microbatches(pieces: Pieces, batch: Batch, ways: int) -> int:
    """Pieces in which the gradient of a minibatch is accumulated: `microbatches`, or as `microbatch_tokens` asks.

    Args:
      pieces: options of the update.
      batch: a minibatch.
      ways: number of devices that hold its rows.
    """
    if not pieces.microbatch_tokens:
        return pieces.microbatches
    rows = batch.tokens if batch.packed is None else batch.packed.tokens
    units = batch.tokens.shape[0] // (1 if batch.packed is None else batch.packed.chunk)
    return pieces_of_tokens(units // ways, rows.size // units, pieces.microbatch_tokens)


def score_in_pieces(score: Callable[[Batch], jax.Array], batch: Batch, pieces: Pieces, ways: int) -> jax.Array:
    """Scores [B, ...] without gradient, in the pieces in which the update runs.

    Scoring then needs no more memory than training, and equal parameters give equal bits in both, which products of
    other shapes would not.
    """
    if pieces.minibatches == 1 and microbatches(pieces, batch, ways) == 1:
        return jax.lax.stop_gradient(score(batch))

    def minibatch(rows: Batch) -> jax.Array:
        return merge_rows(jax.lax.map(score, split_rows(rows, microbatches(pieces, rows, ways), ways)), ways)

    scores = jax.lax.map(minibatch, split_rows(batch, pieces.minibatches, ways))
    return jax.lax.stop_gradient(merge_rows(scores, ways))


def run_epochs(
    update: Callable[[Any, Any], tuple[Any, Any]], carry: Any, data: Any, pieces: Pieces, ways: int
) -> tuple[Any, Any]:
    """Runs `update` over minibatches, `epochs` times; outputs get leading axes [epochs, minibatches].

    The rows of a group are consecutive, so that each minibatch holds whole groups as long as their number divides.
    """
    if pieces.minibatches == 1 and pieces.epochs == 1:
        carry, out = update(carry, data)
        return carry, jax.tree.map(lambda x: x[None, None], out)
    split = split_rows(data, pieces.minibatches, ways)

    def epoch(carry: Any, _: None) -> tuple[Any, Any]:
        return jax.lax.scan(update, carry, split)

    return jax.lax.scan(epoch, carry, None, length=pieces.epochs)


def summarize(prefix: str, outs: dict[str, jax.Array]) -> Metrics:
    """Means over optimiser steps, but the number of skipped ones as a sum."""
    return {f"{prefix}/{name}": value.sum() if name == "skipped" else value.mean() for name, value in outs.items()}


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the mask; 0 when it is empty."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def mixed_groups(batch: Batch, rows: jax.Array) -> jax.Array:
    """[B] bool by group number: whether the group has different outcomes among `rows` [B] bool."""
    groups = batch.mask.shape[0]
    most, least_negated = (
        jax.ops.segment_max(jnp.where(rows, sign * batch.outcome, -jnp.inf), batch.group_ids, groups)
        for sign in (1.0, -1.0)
    )
    return jnp.isfinite(most) & (most > -least_negated)
