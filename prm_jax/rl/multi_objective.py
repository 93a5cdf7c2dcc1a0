"""One reward from several: gates over objectives, removal of length bias, and a verifier that always outranks.

Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts, ArmoRM (arXiv 2406.12845);
rule-based rewards gated by validity, RLSQM (arXiv 2310.02368); dense reward with verifier, Qwen2.5-Math (arXiv
2409.12122). The heads themselves are `weighted_ridge`.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import _util
from prm_jax.rl.correlation import spearman


def objective_gates(logits: ArrayLike, *, temperature: float = 10.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Weights of the objectives from the prompt: `scale * softmax(logits / temperature)`.

    Args:
      logits: [..., K] float, a gating network's output on the prompt's features.
      temperature: > 0 (10 in the released code).
      scale: [] or [..., 1] float.

    Returns:
      [..., K] float32. Gradients flow.

    Source: arXiv 2406.12845.
    """
    return _util.as_f32(scale) * jax.nn.softmax(_util.as_f32(logits) / temperature, -1)


def gated_objectives(
    objectives: ArrayLike,
    gates: ArrayLike,
    *,
    transform: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    floor: float = -1.0,
) -> jax.Array:
    """`sum_k gate_k (objectives @ transform)_k`, or `floor` for invalid responses.

    With a one-hot gate it selects an objective; with constant gates and 0/1 objectives it is a rule-based reward,
    whose `valid` says whether the response could be judged at all (syntactically correct, say).

    Args:
      objectives: [..., K] float. Receives gradients.
      gates: [K] or [..., K] float, `objective_gates`. Receives gradients.
      transform: [K, K] float, `debias_transform`, or None. The released training of ArmoRM's gate leaves it out and
        its inference applies it; pass None and the matrix to do the same.
      valid: [...] bool, or None.
      floor: reward of an invalid response, whatever its objectives hold (NaN included).

    Returns:
      [...] float32.

    Source: arXiv 2406.12845; arXiv 2310.02368.
    """
    objectives, gates = _util.as_f32(objectives), _util.as_f32(gates)
    chex.assert_axis_dimension(gates, -1, objectives.shape[-1])
    if valid is not None:
        valid = _util.as_mask(valid)
        chex.assert_shape(valid, objectives.shape[:-1])
        objectives = _util.masked(objectives, valid[..., None])
        gates = _util.masked(gates, valid[..., None])
    if transform is not None:
        objectives = objectives @ _util.as_f32(transform)
    reward = (objectives * gates).sum(-1)
    return reward if valid is None else jnp.where(valid, reward, floor)


def decorrelate(
    objectives: ArrayLike,
    reference: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    grid: ArrayLike | None = None,
    threshold: float = 0.03,
) -> jax.Array:
    """How much of a nuisance (length) to take out of each objective.

    The smallest lambda of the grid with `spearman(R_k - lambda * reference, reference) <= threshold`.

    Args:
      objectives: [N, K] float.
      reference: [N] float, the objective that tracks the nuisance (verbosity).
      mask: [N] bool, or None.
      grid: [M] float, increasing; None for 0, 0.01, ..., 0.95 as released.
      threshold: largest correlation tolerated.

    Returns:
      [K] float32; the largest value of the grid where none will do, the smallest for an empty mask.
      No gradient.

    Source: arXiv 2406.12845.
    """
    objectives, reference = jax.lax.stop_gradient((_util.as_f32(objectives), _util.as_f32(reference)))
    chex.assert_rank([objectives, reference], [2, 1])
    chex.assert_equal_shape_prefix([objectives, reference], 1)
    grid = jnp.arange(96) / 100.0 if grid is None else _util.as_f32(grid)
    mask = jnp.ones(reference.shape, bool) if mask is None else _util.as_mask(mask)

    def left(penalty: jax.Array) -> jax.Array:
        rows = (objectives - penalty * reference[:, None]).T
        return spearman(rows, jnp.broadcast_to(reference, rows.shape), jnp.broadcast_to(mask, rows.shape))

    enough = jax.lax.map(left, grid) <= threshold  # [M, K]
    return jnp.where(enough.any(0), grid[enough.argmax(0)], grid[-1])


def debias_transform(penalties: ArrayLike, *, reference_index: int) -> jax.Array:
    """Matrix M with `objectives @ M = objectives - penalties * objectives[reference]`.

    Args:
      penalties: [K] float, from `decorrelate`. The released code keeps 1 for the reference itself, which removes it.
      reference_index: column of the nuisance objective.

    Returns:
      [K, K] float32. Gradients flow.

    Source: arXiv 2406.12845.
    """
    penalties = _util.as_f32(penalties)
    chex.assert_rank(penalties, 1)
    return jnp.eye(penalties.shape[0]).at[reference_index].add(-penalties)


def verifier_rewards(rewards: ArrayLike, outcome: ArrayLike, *, scale: float = 0.5) -> jax.Array:
    """Dense reward under a verifier: `sigmoid(scale * r) + (outcome - 1)`.

    Right responses lie in (0, 1), wrong ones in (-1, 0): every right one outranks every wrong one, whatever the
    reward model thinks. With scale 0 it is the verifier alone (+- 1/2).

    Args:
      rewards: [...] float, a reward model's scores. Receives gradients.
      outcome: [...] in [0, 1]; fractions are kept.
      scale: alpha, >= 0.

    Returns:
      [...] float32 in (-1, 1).

    Source: arXiv 2409.12122.
    """
    rewards, outcome = _util.as_f32(rewards), _util.as_f32(outcome)
    chex.assert_equal_shape([rewards, outcome])
    return jax.nn.sigmoid(scale * rewards) + (outcome - 1.0)
