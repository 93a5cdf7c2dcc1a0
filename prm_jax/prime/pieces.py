"""Scoring and updating in pieces of a batch: minibatches, microbatches and epochs, on one device or a mesh."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from prm_jax.models import ModelConfig, token_logprobs
from prm_jax.prime.batch import Batch, Metrics
from prm_jax.runs.learner import Params, merge_rows, split_rows


class Pieces(Protocol):
    """Options of an update: into what a batch is divided, and how often it is used."""

    @property
    def minibatches(self) -> int: ...
    @property
    def microbatches(self) -> int: ...
    @property
    def epochs(self) -> int: ...


def batch_logprobs(config: ModelConfig, params: Params, batch: Batch, temperature: float = 1.0) -> jax.Array:
    """Log-probs [B, T] of the responses; 0 outside them."""
    return token_logprobs(config, params, batch.tokens, batch.mask, temperature=temperature, start=batch.start)


def score_in_pieces(score: Callable[[Batch], jax.Array], batch: Batch, pieces: Pieces, ways: int) -> jax.Array:
    """Scores [B, ...] without gradient, in the pieces in which the update runs.

    Scoring then needs no more memory than training, and equal parameters give equal bits in both, which products of
    other shapes would not.
    """
    if pieces.minibatches * pieces.microbatches == 1:
        return jax.lax.stop_gradient(score(batch))

    def minibatch(rows: Batch) -> jax.Array:
        return merge_rows(jax.lax.map(score, split_rows(rows, pieces.microbatches, ways)), ways)

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
