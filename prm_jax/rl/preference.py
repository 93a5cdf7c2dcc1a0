"""Preferences that need not be transitive: skew-symmetric scores, and a policy loss against a population of responses.

General Preference Modeling with Preference Representations (arXiv 2410.02197). With two dimensions and embeddings
(r, 1) the score is a difference of rewards, Bradley-Terry's model.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean


def preference_score(left: ArrayLike, right: ArrayLike, *, scales: ArrayLike | None = None) -> jax.Array:
    """How much `left` is preferred to `right`: `sum_k scale_k (l_2k r_2k+1 - l_2k+1 r_2k)`.

    Skew-symmetric: swapping the arguments changes the sign, and a response is indifferent to itself. It can express
    cycles, which no scalar reward can. The loss of a preference is `pairwise_loss(score / temperature, 0)`.

    Args:
      left: [..., D] float, D even.
      right: [..., D] float.
      scales: [..., D / 2] float, >= 0, may depend on the prompt (`preference_gates`); None for ones.

    Returns:
      [...] float32. Gradients flow to all.

    Source: arXiv 2410.02197.
    """
    left, right = masking.as_f32(left), masking.as_f32(right)
    if left.shape[-1] % 2 or left.shape[-1] != right.shape[-1]:
        raise ValueError(f"embeddings need one even dimension, found {left.shape[-1]} and {right.shape[-1]}")
    terms = left[..., 0::2] * right[..., 1::2] - left[..., 1::2] * right[..., 0::2]
    return (terms if scales is None else masking.as_f32(scales) * terms).sum(-1)


def preference_gates(logits: ArrayLike) -> jax.Array:
    """Scales of the planes from the prompt: `D/2 * softmax(logits)`, 1 on average.

    Args:
      logits: [..., D / 2] float, from a linear layer on the prompt's features.

    Returns:
      [..., D / 2] float32, summing to D / 2. Gradients flow.
    """
    logits = masking.as_f32(logits)
    return logits.shape[-1] * jax.nn.softmax(logits, -1)


def group_preferences(
    embeddings: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    mask: ArrayLike | None = None,
    scales: ArrayLike | None = None,
    temperature: float = 1.0,
    output: str = "score",
) -> jax.Array:
    """Mean preference of each response over the other responses to its prompt: an estimate of s(y > pi).

    Args:
      embeddings: [B, D] float, D even.
      group_ids: [B] int in [0, num_groups), any order. Under `shard_map` a group must be on one device.
      num_groups: number of prompts.
      mask: [B] bool, or None.
      scales: [B, D / 2] float, the row's own prompt's, or None.
      temperature: divides the scores.
      output: "score", or "win" for the mean of sigmoid(score), the estimated win rate (SPPO).

    Returns:
      [B] float32; 0 (1/2 for "win") for a response without others. Gradients flow. Memory O(B^2).

    Source: arXiv 2410.02197.
    """
    masking.check_option("output", output, ("score", "win"))
    embeddings = masking.as_f32(embeddings)
    ids, member = masking.group_members(group_ids, num_groups, mask)
    chex.assert_rank([embeddings, ids], [2, 1])
    chex.assert_equal_shape_prefix([embeddings, ids], 1)
    embeddings = masking.masked(embeddings, member[:, None])
    own = None if scales is None else masking.masked(scales, member[:, None])[:, None]
    score = preference_score(embeddings[:, None], embeddings[None], scales=own) / temperature
    if output == "win":
        score = jax.nn.sigmoid(score)
    others = masking.same_group(ids, member) & ~jnp.eye(ids.shape[0], dtype=bool)
    alone = 0.5 if output == "win" else 0.0
    mean = jnp.where(others, score, 0.0).sum(-1) / jnp.maximum(others.sum(-1), 1)
    return jnp.where(member, jnp.where(others.any(-1), mean, alone), 0.0)


def gpo_loss(
    logp: ArrayLike,
    old_logp: ArrayLike,
    scores: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    beta: float,
    log_z: ArrayLike = 0.0,
) -> Loss:
    """Moves the policy towards `pi_t(y) exp(s(y > pi_t) / beta) / Z`: `(log pi / pi_t - s / beta + log Z)^2`.

    Published code sets log Z to 0; it is not 0 in general (`log E_pi_t[exp(s / beta)]`), and an estimate of it over
    the prompt's samples removes the bias. SPPO is the same loss with `scores = win rate - 1/2`.

    Args:
      logp: [B] float, log-probability of each response. Receives gradients.
      old_logp: [B] float, under the policy pi_t that drew it. No gradient.
      scores: [B] float, mean preference over pi_t (`group_preferences`). No gradient.
      mask: [B] bool, or None.
      beta: strength of the pull back to pi_t, > 0.
      log_z: [] or [B] float. No gradient.

    Returns:
      `Loss`, weight = responses; metric `residual`, the mean absolute residual.

    Source: arXiv 2410.02197; arXiv 2405.00675 (SPPO).
    """
    logp = jnp.asarray(logp)
    mask = jnp.ones(logp.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank(logp, 1)
    chex.assert_equal_shape([logp, jnp.asarray(old_logp), jnp.asarray(scores), mask])
    log_z = jnp.broadcast_to(masking.as_f32(log_z), mask.shape)
    goal = masking.masked(old_logp, mask) + masking.masked(scores, mask) / beta - masking.masked(log_z, mask)
    residual = masking.masked(logp, mask) - jax.lax.stop_gradient(goal)
    weight = mask.sum().astype(jnp.float32)
    metrics = {"residual": Mean(jax.lax.stop_gradient(jnp.abs(residual).sum()), weight)}
    return Loss((residual**2).sum(), weight, metrics)
