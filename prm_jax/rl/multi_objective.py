"""One reward from several: gates over objectives, and a verifier that outranks any score.

Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts, ArmoRM (arXiv 2406.12845);
rule-based rewards gated by validity, RLSQM (arXiv 2310.02368); dense reward with verifier, Qwen2.5-Math (arXiv
2409.12122). The heads are fitted by `stats.weighted_ridge`; length bias is removed by `stats.decorrelate` and
`stats.debias_transform`.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


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
    return masking.as_f32(scale) * jax.nn.softmax(masking.as_f32(logits) / temperature, -1)


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
      transform: [K, K] float, `debias_transform`, or None. ArmoRM's released code omits it when training the gate and
        applies it at inference; pass None and the matrix, respectively.
      valid: [...] bool, or None.
      floor: reward of an invalid response, whose objectives are ignored, even NaN.

    Returns:
      [...] float32.

    Source: arXiv 2406.12845; arXiv 2310.02368.
    """
    objectives, gates = masking.as_f32(objectives), masking.as_f32(gates)
    chex.assert_axis_dimension(gates, -1, objectives.shape[-1])
    if valid is not None:
        valid = masking.as_mask(valid)
        chex.assert_shape(valid, objectives.shape[:-1])
        objectives = masking.masked(objectives, valid[..., None])
        gates = masking.masked(gates, valid[..., None])
    if transform is not None:
        objectives = objectives @ masking.as_f32(transform)
    reward = (objectives * gates).sum(-1)
    return reward if valid is None else jnp.where(valid, reward, floor)


def verifier_rewards(rewards: ArrayLike, outcome: ArrayLike, *, scale: float = 0.5) -> jax.Array:
    """Dense reward under a verifier: `sigmoid(scale * r) + (outcome - 1)`.

    Right responses are in (0, 1), wrong ones in (-1, 0): every right one outranks every wrong one, for any score of the
    reward model. With scale 0 it is the verifier alone (+- 1/2).

    Args:
      rewards: [...] float, a reward model's scores. Receives gradients.
      outcome: [...] in [0, 1]; fractions are kept.
      scale: alpha, >= 0.

    Returns:
      [...] float32 in (-1, 1).

    Source: arXiv 2409.12122.
    """
    rewards, outcome = masking.as_f32(rewards), masking.as_f32(outcome)
    chex.assert_equal_shape([rewards, outcome])
    return jax.nn.sigmoid(scale * rewards) + (outcome - 1.0)
