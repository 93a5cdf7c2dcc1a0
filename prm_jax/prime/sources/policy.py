"""The policy as its own PRM: the log-ratio of the policy to its initial weights (SPRO, arXiv 2507.01551)."""

from typing import Any

import jax

from prm_jax import rl
from prm_jax.models import ModelConfig
from prm_jax.prime.pieces import Pieces, batch_logprobs, score_in_pieces
from prm_jax.prime.sources.base import Source, SourceBatch
from prm_jax.runs.learner import Params


class PolicyAsPRM(Source):
    """beta * (log policy - log reference) at every token; nothing besides the policy is trained.

    Args:
      config: the policy's architecture.
      beta: scale of the log-ratio.
      pieces: in which the policy is scored.
      ways: number of devices that hold the rows.
    """

    def __init__(self, config: ModelConfig, *, beta: float, pieces: Pieces, ways: int = 1) -> None:
        self.config, self.beta, self.pieces, self.ways = config, beta, pieces, ways

    def score(self, state: Any, batch: SourceBatch) -> jax.Array:
        """[B, T] float32; exactly 0 until the policy has moved."""
        del state
        logp, ref_logp = self._logp(batch.policy, batch), self._logp(batch.reference, batch)
        return rl.implicit_token_rewards(logp, ref_logp, batch.mask, beta=self.beta)

    def _logp(self, params: Params, batch: SourceBatch) -> jax.Array:
        return score_in_pieces(
            lambda rows: batch_logprobs(self.config, params, rows), batch.rows, self.pieces, self.ways
        )  # fmt: skip
