"""What an attention call computes, apart from its arrays: static, hashable, the same for every implementation."""

import dataclasses

import jax
import jax.numpy as jnp

NEGATIVE = -1e30
"""The score of a key that a query may not see; finite, so that a row with nothing to see does not become NaN."""

SAVED = "attention"
"""``checkpoint_name`` of what the backward pass needs and the rematerialisation "attention" keeps."""


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """Static arguments of ``attention.attend``.

    Attributes:
      scale: factor of the scores.
      window: tokens that a query sees at most, its own included; None for all.
      softcap: c of ``c * tanh(score / c)``, or None.
      offset: key column of the first query.
      block: tokens per block; None for the implementation's choice.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    offset: int = 0
    block: int | None = None

    def capped(self, scores: jax.Array) -> jax.Array:
        """Scores after the soft cap."""
        return soft_capped(scores, self.softcap)

    def visible(self, query_columns: jax.Array, key_columns: jax.Array) -> jax.Array:
        """[T, S] bool from the key columns of queries [T] and keys [S]: causal, and within the window."""
        distance = query_columns[:, None] - key_columns[None, :]
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)


def soft_capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """``cap * tanh(scores / cap)``; the scores themselves for None."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)
