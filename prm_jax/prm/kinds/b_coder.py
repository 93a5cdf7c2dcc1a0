"""A duelling Q function whose advantages are the model's own logits: B-Coder, arXiv 2310.03173.

A = alpha (logit - largest logit), Q = A + V.  The backup takes the action that the frozen start prefers.  Arrays over
the vocabulary exist for one piece of the tokens at a time, forward and backward.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import finished_logits, head_matrix, hidden_states, value_head
from prm_jax.option_ranges import above, at_least, within
from prm_jax.prm.forward import init_head, judged, step_sums, text_hidden
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights, without_head
from prm_jax.runs.learner import Params

_PIECE = 256  # tokens whose logits exist at one time


@dataclasses.dataclass(frozen=True, kw_only=True)
class BCoder(HeadedKind):
    """A duelling Q in the model's logits, with a head for the state's value."""

    kind: Literal["b_coder"] = "b_coder"
    discount: Annotated[float, within(0, 1)] = 1.0
    """Discount per token."""
    alpha: Annotated[float, above(0)] = 0.1
    """Temperature of the advantage in the logits."""
    advantage_coef: Annotated[float, at_least(0)] = 0.1
    """Weight of the advantage's magnitude on successful responses."""
    ce_coef: Annotated[float, at_least(0)] = 0.5
    """Weight of the likelihood of successful responses."""

    learns_from: ClassVar[Needs] = "outcome"
    output: ClassVar[Output] = "score"
    default_aggregate: ClassVar = "sum"
    compares: ClassVar[bool] = True

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The Q function is in the language model."""
        del model
        return without_head(self.kind, train, reason="is in the language model")

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A head for the state's value."""
        return init_head(spec, key, num_outputs=1), {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> dict[str, Any]:
        """Everything about the response's tokens, each flat [N * T].

        state [., D] hidden states that predict each token; head [V, D]; value, next_value: V before and after the
        token; next_q: Q after it at the frozen start's preferred action, without gradient.
        """
        hidden = text_hidden(spec, weights, batch)
        reference = weights.model if weights.reference is None else weights.reference
        config = spec.reference_config or spec.config
        frozen = hidden
        if weights.reference is not None:
            frozen = hidden_states(config, reference, batch.tokens, segment_ids=batch.segment_ids)
        width = hidden.shape[-1]
        after = value_head(weights.head, hidden)[..., 0]
        before = jnp.pad(after[:, :-1], ((0, 0), (1, 0)))
        state = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        head, frozen_head = head_matrix(spec.config, weights.model), head_matrix(config, reference)

        def advantage_of_frozen_choice(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            mine, theirs = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in rows)
            logits = finished_logits(spec.config, mine @ jax.lax.stop_gradient(head).astype(jnp.float32).T)
            # The largest product is the largest logit: scaling and capping keep the order.
            choice = jnp.argmax(theirs @ frozen_head.astype(jnp.float32).T, -1)
            q = rl.dueling_q(logits, jnp.zeros(logits.shape[:-1]), alpha=self.alpha)
            return jnp.take_along_axis(q, choice[:, None], -1)[:, 0]

        rows = (hidden.reshape(-1, width), frozen.reshape(-1, frozen.shape[-1]))
        ahead = _in_pieces(advantage_of_frozen_choice, rows)
        return {
            "state": state.reshape(-1, width),
            "head": head,
            "value": before.reshape(-1),
            "next_value": after.reshape(-1),
            "next_q": jax.lax.stop_gradient(ahead + after.reshape(-1)),
        }

    def training_loss(self, spec: Spec, found: dict[str, Any], batch: Batch, constant: jax.Array) -> rl.Loss:
        """Squared Bellman errors at every token; on successful responses also the two anchors to the data."""
        del constant
        inside, continues, outcome = _tokens(batch)
        rewards = jnp.where(inside & ~continues, 2 * outcome - 1, 0.0)
        targets = rewards + jnp.where(continues, self.discount * found["next_q"], 0.0)

        def piece(rows: tuple[jax.Array, ...]) -> rl.Loss:
            state, value, action, target, mask, good = rows
            logits = finished_logits(spec.config, state.astype(jnp.float32) @ found["head"].astype(jnp.float32).T)
            failed = rl.dueling_loss(logits, value, action, target, mask & ~good, alpha=self.alpha)
            solved = rl.dueling_loss(
                logits, value, action, target, mask & good, alpha=self.alpha,
                advantage_coef=self.advantage_coef, ce_coef=self.ce_coef,
            )  # fmt: skip
            return jax.tree.map(jnp.add, failed, solved)

        rows = (found["state"], found["value"], batch.tokens.reshape(-1), targets, inside, outcome > 0.5)
        return jax.tree.map(lambda x: x.sum(0), _in_pieces(piece, rows, join=False))

    def scores(self, spec: Spec, found: dict[str, Any], batch: Batch) -> jax.Array:
        """[R, S]: the rewards that the Q function was fitted to, Q - discount * V', summed over each step."""
        inside, continues, _ = _tokens(batch, known=False)

        def taken(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            logits = finished_logits(spec.config, rows[0].astype(jnp.float32) @ found["head"].astype(jnp.float32).T)
            q = rl.dueling_q(logits, jnp.zeros(logits.shape[:-1]), alpha=self.alpha)
            return jnp.take_along_axis(q, rows[1][:, None], -1)[:, 0]

        q = _in_pieces(taken, (found["state"], batch.tokens.reshape(-1))) + found["value"]
        rewards = rl.recovered_rewards(q, jnp.where(continues, self.discount, 0.0), found["next_value"])
        return step_sums(jnp.where(inside, rewards, 0.0).reshape(batch.tokens.shape), batch)


def _tokens(batch: Batch, *, known: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Flat [N * T]: the token belongs to a response (with an outcome, if `known`); so does the next; its outcome."""
    count, steps = batch.step_mask.shape
    owner = jnp.where(batch.slots >= 0, batch.slots // steps, -1)
    following = jnp.pad(owner[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    inside = owner >= 0
    if known:
        inside = inside & judged(batch)[jnp.maximum(owner, 0)]
    outcome = batch.outcome[jnp.maximum(owner, 0)]
    return inside.reshape(-1), (inside & (following == owner)).reshape(-1), outcome.reshape(-1)


def _in_pieces(function: Callable[[Any], Any], rows: Any, *, join: bool = True) -> Any:
    """`function` on pieces of the leading axis, recomputed in the backward pass; results joined, or stacked."""
    count = jax.tree.leaves(rows)[0].shape[0]
    pieces = -(-count // _PIECE)

    def cut(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, pieces * _PIECE - count), *((0, 0) for _ in x.shape[1:])))
        return padded.reshape(pieces, _PIECE, *x.shape[1:])

    found = jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found) if join else found
