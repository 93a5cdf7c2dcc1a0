"""Step scores and token rewards of reward models on rows of tokens: pure functions for use inside a compiled step."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.prm.kinds import KINDS
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Spec, Weights


def check_gives_step_scores(spec: Spec) -> None:
    """Refuses a model that scores whole responses only.

    Raises:
      UserError: naming the kinds that score steps.
    """
    if not spec.kind.step_scores:
        good = ", ".join(name for name, kind in KINDS.items() if kind.step_scores and not kind.generates)
        raise UserError(
            f"a reward model of kind {spec.kind.kind} is trained to score whole responses, not steps, so that it gives "
            f"no process rewards: use a model of kind {good}"
        )
    if spec.kind.generates:
        raise UserError(
            f"a reward model of kind {spec.kind.kind} scores by sampling text, which cannot be part of a compiled "
            "step: score solutions with it (PRM.score), or use --reward.source model"
        )


def token_rewards(
    spec: Spec, weights: Weights, tokens: jax.Array, mask: jax.Array, step_ids: jax.Array, *, num_steps: int
) -> jax.Array:
    """Process rewards of a frozen reward model, whose sums over steps are its step scores.

    Args:
      spec: of the model; static under jit.
      weights: of the model.
      tokens: [B, T] int32, rows ``[prompt][response][padding]``.
      mask: [B, T] bool, True on response tokens.
      step_ids: [B, T] int32, the step of each response token, -1 elsewhere.
      num_steps: S, more than any step id; static.

    Returns:
      [B, T] float32, without gradient: the score of each step on the step's last token and 0 elsewhere; models that
      score by log-ratios give every token its own. An empty mask gives 0.

    Raises:
      UserError: the model scores whole responses only.
    """
    check_gives_step_scores(spec)
    batch = rows_batch(tokens, mask, step_ids, num_steps=num_steps)
    return jax.lax.stop_gradient(spec.kind.token_rewards(spec, weights, batch))


def step_scores(
    spec: Spec, weights: Weights, tokens: jax.Array, mask: jax.Array, step_ids: jax.Array, *, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Scores of the steps in rows of tokens; arguments as `token_rewards`, of any kind.

    Returns:
      ([B, S] float32, 0 where there is no step; [B, S] bool, True on steps that exist).
    """
    if spec.kind.generates:
        check_gives_step_scores(spec)
    batch = rows_batch(tokens, mask, step_ids, num_steps=num_steps)
    return spec.kind.scores(spec, spec.kind.forward(spec, weights, batch), batch), batch.step_mask


def ensemble_token_rewards(
    specs: Sequence[Spec],
    weights: Sequence[Weights],
    tokens: jax.Array,
    mask: jax.Array,
    step_ids: jax.Array,
    *,
    num_steps: int,
    coefficient: float = 1.0,
) -> jax.Array:
    """Pessimistic process rewards of several reward models: mean less `coefficient` times spread of the step scores.

    Args:
      specs: of E models with comparable scores; static under jit.
      weights: of each.
      tokens, mask, step_ids, num_steps: as `token_rewards`.
      coefficient: of the spread, see ``rl.pessimistic_rewards``.

    Returns:
      [B, T] float32, without gradient: the bound of each step on the step's last token, 0 elsewhere.

    Raises:
      UserError: a model scores whole responses only, or the models' scores are of different kinds.
    """
    outputs = {spec.kind.output for spec in specs}
    if len(outputs) != 1:
        raise UserError(f"an ensemble needs models with comparable scores, found {', '.join(sorted(outputs))}")
    found = []
    for spec, own in zip(specs, weights, strict=True):
        check_gives_step_scores(spec)
        scores, steps = step_scores(spec, own, tokens, mask, step_ids, num_steps=num_steps)
        found.append(scores)
    bound, _ = rl.pessimistic_rewards(jnp.stack(found), coefficient=coefficient)
    rewards = rl.token_rewards_from_steps(jnp.where(steps, bound, 0.0), jnp.where(mask, step_ids, -1))
    return jax.lax.stop_gradient(rewards)


def rows_batch(tokens: jax.Array, mask: jax.Array, step_ids: jax.Array, *, num_steps: int) -> Batch:
    """Rows of tokens as the batch that kinds read: one solution per row, without labels.

    Args:
      tokens, mask, step_ids, num_steps: as `token_rewards`.
    """
    chex.assert_rank([tokens, mask, step_ids], 2)
    chex.assert_equal_shape([tokens, mask, step_ids])
    rows, width = tokens.shape
    inside = mask & (step_ids >= 0) & (step_ids < num_steps)
    steps = jnp.where(inside, step_ids, num_steps)  # the last segment is dropped
    columns = jnp.arange(width)
    last = jax.vmap(lambda row: jax.ops.segment_max(columns, row, num_steps + 1)[:-1])(steps)  # [B, S]
    step_mask = last >= 0
    first = jnp.min(jnp.where(inside, columns, width), axis=-1)  # [B]
    begins = jnp.arange(rows) * width
    return Batch(
        tokens=tokens,
        segment_ids=None,  # causal attention: what follows a response does not change its scores
        slots=jnp.where(inside, jnp.arange(rows)[:, None] * num_steps + step_ids, -1),
        reads=jnp.where(step_mask, begins[:, None] + last, 0),
        starts=jnp.where(inside.any(-1) & (first > 0), begins + first - 1, -1),
        step_mask=step_mask,
        labels=jnp.zeros((rows, num_steps), jnp.float32),
        label_mask=jnp.zeros((rows, num_steps), bool),
        outcome=jnp.zeros(rows, jnp.float32),
        group_ids=jnp.full(rows, -1, jnp.int32),
        objectives=jnp.zeros((rows, 0), jnp.float32),
        objective_mask=jnp.zeros((rows, 0), bool),
        label_counts=jnp.zeros((rows, num_steps), jnp.float32),
    )
