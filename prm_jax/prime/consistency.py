"""Responses whose process rewards agree with their outcome: the consistency filter of PROF, arXiv 2509.03403."""

import dataclasses

import jax
import jax.numpy as jnp

from prm_jax.prime.batch import RewardInputs


def consistent_rows(inputs: RewardInputs, share: float) -> jax.Array:
    """[B] bool: of each group's right responses those with the highest process rewards, of the wrong ones the lowest.

    Both sides keep the share `share`, rounded up, so that a group keeps its mixture of outcomes. A response is right
    above an outcome of 1/2, and judged by the mean reward of its tokens.

    Args:
      inputs: of the step.
      share: in (0, 1]; 1 keeps all.
    """
    mask, keep = inputs.mask, inputs.keep
    mean = jnp.where(mask, inputs.process, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)
    right = inputs.outcome > 0.5
    agreement = jnp.where(right, mean, -mean)
    same = (inputs.group_ids[:, None] == inputs.group_ids) & (right[:, None] == right) & keep[:, None] & keep
    order = jnp.arange(keep.shape[0])
    tied = (agreement[None] == agreement[:, None]) & (order[None] < order[:, None])
    ahead = (agreement[None] > agreement[:, None]) | tied
    rank = (same & ahead).sum(-1)
    return keep & (rank < jnp.ceil(share * same.sum(-1) - 1e-4))


def filtered(inputs: RewardInputs, share: float) -> RewardInputs:
    """The inputs in which only consistent rows count; the same ones for a share of 1."""
    return inputs if share >= 1.0 else dataclasses.replace(inputs, keep=consistent_rows(inputs, share))

