"""Step and token values from Bellman equations: duelling heads on a language model, targets, twins.

The duelling head and the conservative operator are B-Coder's (arXiv 2310.03173); expected and greedy targets and the
optimistic reading of twins are Digi-Q's (arXiv 2502.15760); the swapped pair of tables is double Q-learning's, as in
RSRM (arXiv 2305.14656). Slow target networks are left to the caller (`optax.incremental_update`).
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean

Backup = Literal["expected", "greedy", "conservative"]


def dueling_q(logits: ArrayLike, value: ArrayLike, *, alpha: float) -> jax.Array:
    """State-action values whose softmax is the language model's own: Q = alpha (l - max_a l) + V.

    The advantage part is never positive and 0 for the most probable token, so `max_a Q = V`; softmax(Q / alpha) is
    softmax(l) for every V, so training starts from the policy that the logits came from.

    Args:
      logits: [..., V] float, over tokens or actions.
      value: [...] float, state value.
      alpha: temperature, > 0.

    Returns:
      [..., V] float32. Gradients flow to both (through the maximum too).

    Source: arXiv 2310.03173, section 4.2.
    """
    logits, value = masking.as_f32(logits), masking.as_f32(value)
    chex.assert_shape(value, logits.shape[:-1])
    return alpha * (logits - logits.max(-1, keepdims=True)) + value[..., None]


def continuation_discounts(mask: ArrayLike, *, discount: float) -> jax.Array:
    """`discount` on valid positions that a valid position follows, 0 on the last one and outside the mask.

    Args:
      mask: [..., T] bool.
      discount: in [0, 1].

    Returns:
      [..., T] float32, the `discounts` of the targets in this file; 0 for an empty row. No gradient.
    """
    mask = masking.as_mask(mask)
    return jnp.where(mask & ~masking.is_last(mask), discount, 0.0)


def q_target(rewards: ArrayLike, discounts: ArrayLike, next_q: ArrayLike, next_actions: ArrayLike) -> jax.Array:
    """One-step target `r + discount * Q(s', a')` with the next action given.

    Args:
      rewards: [...] float.
      discounts: [...] float, 0 on terminal transitions; there `next_q` is ignored, even NaN.
      next_q: [..., A] float, values of the next state.
      next_actions: [...] int in [0, A).

    Returns:
      [...] float32. No gradient.
    """
    next_q = masking.as_f32(next_q)
    chex.assert_equal_shape([jnp.asarray(rewards), jnp.asarray(discounts), jnp.asarray(next_actions)])
    chex.assert_shape(next_q, (*jnp.shape(rewards), next_q.shape[-1]))
    bootstrap = jnp.take_along_axis(next_q, jnp.asarray(next_actions)[..., None], -1)[..., 0]
    return _bootstrapped(rewards, discounts, bootstrap)


def bellman_targets(
    rewards: ArrayLike,
    discounts: ArrayLike,
    next_q: ArrayLike,
    policy_logits: ArrayLike | None = None,
    *,
    kind: Backup = "conservative",
) -> jax.Array:
    """One-step targets `r + discount * backup(Q(s', .))`.

    "expected": the mean of Q under softmax(policy_logits). "greedy": its maximum (Q-learning). "conservative": Q at
    the action that a *frozen* model prefers, argmax policy_logits, which does not follow the errors of the Q being
    trained; with `policy_logits = next_q` it is "greedy". All three are contractions by `discount`.

    Args:
      rewards: [...] float.
      discounts: [...] float, 0 on terminal transitions; there `next_q` is ignored, even NaN.
      next_q: [..., A] float, target network's values of the next state.
      policy_logits: [..., A] float, of the policy at the next state ("expected") or of the frozen model
        ("conservative"; its Q works as well as its logits); not used by "greedy".
      kind: see above.

    Returns:
      [...] float32. No gradient.

    Source: arXiv 2310.03173, section 4.3 (conservative); arXiv 2502.15760 (expected).
    """
    masking.check_option("kind", kind, ("expected", "greedy", "conservative"))
    next_q = masking.as_f32(next_q)
    chex.assert_shape(next_q, (*jnp.shape(rewards), next_q.shape[-1]))
    if kind == "greedy":
        return _bootstrapped(rewards, discounts, next_q.max(-1))
    if policy_logits is None:
        raise ValueError(f"kind={kind!r} needs policy_logits")
    policy_logits = masking.as_f32(policy_logits)
    chex.assert_equal_shape([next_q, policy_logits])
    if kind == "expected":
        return _bootstrapped(rewards, discounts, (jax.nn.softmax(policy_logits, -1) * next_q).sum(-1))
    return q_target(rewards, discounts, next_q, policy_logits.argmax(-1))


def recovered_rewards(q_taken: ArrayLike, discounts: ArrayLike, next_value: ArrayLike) -> jax.Array:
    """The reward that a value function implies: `Q(s, a) - discount * V(s')`, the inverse of the Bellman operator.

    With V(s') the backup of Q at the next state it returns exactly the reward that Q was fitted to. Its sum ranks
    candidate programs or solutions without running them.

    Args:
      q_taken: [..., T] float, Q of the actions taken.
      discounts: [..., T] float, 0 on terminal transitions.
      next_value: [..., T] float, backup at the next state; ignored where the discount is 0.

    Returns:
      [..., T] float32. Gradients flow to both.

    Source: arXiv 2310.03173, section 4.5.
    """
    discounts = masking.as_f32(discounts)
    chex.assert_equal_shape([jnp.asarray(q_taken), discounts, jnp.asarray(next_value)])
    return masking.as_f32(q_taken) - discounts * masking.masked(next_value, discounts != 0)


def dueling_loss(
    logits: ArrayLike,
    value: ArrayLike,
    actions: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    *,
    alpha: float,
    advantage_coef: float = 0.0,
    ce_coef: float = 0.0,
) -> Loss:
    """Squared Bellman error of a duelling head, with B-Coder's two anchors to the data.

    `(Q(s, a) - y)^2 + advantage_coef |A(s, a)| + ce_coef (-log softmax(l)_a)`: the last two keep taken actions near
    the top, and belong on successful sequences only (set the others' mask for that term by a second call).

    Args:
      logits: [..., T, V] float. Receives gradients.
      value: [..., T] float. Receives gradients.
      actions: [..., T] int.
      targets: [..., T] float, from `bellman_targets`. No gradient.
      mask: [..., T] bool, True on valid tokens.
      alpha: temperature of `dueling_q`.
      advantage_coef: >= 0.
      ce_coef: >= 0.

    Returns:
      `Loss`, weight = valid tokens (0 for an empty mask); metrics `td`, `advantage`, `nll`, means over tokens.

    Source: arXiv 2310.03173.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(value), jnp.asarray(actions), jnp.asarray(targets), mask])
    logits = masking.masked(logits, mask[..., None])
    actions = jnp.where(mask, jnp.asarray(actions), 0)[..., None]
    targets = jax.lax.stop_gradient(masking.masked(targets, mask))
    advantage = dueling_q(logits, jnp.zeros(mask.shape), alpha=alpha)
    taken = jnp.take_along_axis(advantage, actions, -1)[..., 0]
    td = (taken + masking.masked(value, mask) - targets) ** 2
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), actions, -1)[..., 0]
    terms = {"td": td, "advantage": -taken, "nll": nll}
    weight = mask.sum().astype(jnp.float32)
    sums = {name: Mean(masking.masked(term, mask).sum(), weight) for name, term in terms.items()}
    total = sums["td"].total + advantage_coef * sums["advantage"].total + ce_coef * sums["nll"].total
    return Loss(total, weight, jax.lax.stop_gradient(sums))


def twin(first: ArrayLike, second: ArrayLike, *, how: Literal["min", "max", "mean"]) -> jax.Array:
    """Reads a pair of value heads: "min" guards against over-estimation, "max" is optimistic (Digi-Q).

    Args:
      first: [...] float.
      second: [...] float.
      how: see above; no default, because published implementations use both.

    Returns:
      [...] float32. Gradients flow to the selected one (half to each in a tie or a mean).
    """
    masking.check_option("how", how, ("min", "max", "mean"))
    first, second = masking.as_f32(first), masking.as_f32(second)
    chex.assert_equal_shape([first, second])
    if how == "mean":
        return 0.5 * (first + second)
    return jnp.minimum(first, second) if how == "min" else jnp.maximum(first, second)


def double_q_target(
    rewards: ArrayLike,
    discounts: ArrayLike,
    next_q: ArrayLike,
    next_q_other: ArrayLike,
    *,
    form: Literal["standard", "rsrm"] = "standard",
) -> jax.Array:
    """Target for one of two tables or heads, using the other to evaluate.

    "standard" (van Hasselt): `r + discount * Q_other(s', argmax_a Q(s', a))`, without the upward bias of a maximum
    over noise. "rsrm", as in the released code of RSRM: `r + discount * max_a Q_other(s', a)`, which keeps it.

    Args:
      rewards: [...] float.
      discounts: [...] float, 0 on terminal transitions.
      next_q: [..., A] float, next-state values of the table that is updated.
      next_q_other: [..., A] float, of the other one.
      form: see above.

    Returns:
      [...] float32. No gradient.
    """
    masking.check_option("form", form, ("standard", "rsrm"))
    if form == "rsrm":
        return bellman_targets(rewards, discounts, next_q_other, kind="greedy")
    return bellman_targets(rewards, discounts, next_q_other, next_q, kind="conservative")


def _bootstrapped(rewards: ArrayLike, discounts: ArrayLike, bootstrap: jax.Array) -> jax.Array:
    discounts = masking.as_f32(discounts)
    chex.assert_equal_shape([jnp.asarray(rewards), discounts, bootstrap])
    target = masking.as_f32(rewards) + discounts * masking.masked(bootstrap, discounts != 0)
    return jax.lax.stop_gradient(target)
