"""Kernels: one folder per op, with its entry points (``api``) and one file per backend. Imports jax only."""

from prm_jax.pallas.linear_logprob.api import IMPLEMENTATIONS, linear_logprob, linear_lse_and_target
from prm_jax.pallas.linear_logprob.closure import TokenStatistics, linear_logprob_loss
from prm_jax.pallas.linear_logprob.logprob_options import LogprobOptions
from prm_jax.pallas.linear_logprob.problem import Target
from prm_jax.pallas.linear_logprob.sharded import Partition, sharded_lse_and_target
from prm_jax.pallas.packed_product.api import PackedMatrix, packed_product

__all__ = [
    "IMPLEMENTATIONS",
    "LogprobOptions",
    "PackedMatrix",
    "Partition",
    "Target",
    "TokenStatistics",
    "linear_logprob",
    "linear_logprob_loss",
    "linear_lse_and_target",
    "packed_product",
    "sharded_lse_and_target",
]
