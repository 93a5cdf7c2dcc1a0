"""A source of process rewards of your own: repeating a token costs, whatever the outcome.

prm-jax train --preset smoke --reward.source examples/source.py:Repetition --advantage.normalizer none
"""

import jax
import jax.numpy as jnp

from prm_jax.prime import Source, SourceBatch


class Repetition(Source):
    """-0.1 at every response token that equals the one before it; nothing is learned."""

    def __init__(self, options, start) -> None:
        """`options` and `start` are those of the run: task, tokenizer, models."""

    def score(self, state: tuple, batch: SourceBatch) -> jax.Array:
        """[B, T] float32, traced into the training step."""
        repeated = batch.tokens[:, 1:] == batch.tokens[:, :-1]
        return -0.1 * jnp.pad(repeated, ((0, 0), (1, 0))).astype(jnp.float32)
