"""Kernels: one folder an op, in it the dispatch (``api``) and one file for each backend.  Imports jax only."""

from prm_jax.pallas.linear_logprob.api import IMPLEMENTATIONS, linear_logprob, linear_lse_and_target
from prm_jax.pallas.linear_logprob.closure import TokenStatistics, linear_logprob_loss
from prm_jax.pallas.linear_logprob.problem import Target
from prm_jax.pallas.linear_logprob.sharded import sharded_lse_and_target

__all__ = [
    "IMPLEMENTATIONS",
    "Target",
    "TokenStatistics",
    "linear_logprob",
    "linear_logprob_loss",
    "linear_lse_and_target",
    "sharded_lse_and_target",
]
