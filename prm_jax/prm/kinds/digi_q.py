"""Step values by temporal differences on frozen features, with twins and slow targets: Digi-Q, arXiv 2502.15760.

Q(s_k, a_k) reads the state after step k, V(s_k) the state before it; the reward is the outcome, at the last step.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from prm_jax import rl
from prm_jax.option_ranges import within
from prm_jax.prm.forward import apply_head, init_head, judged, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigiQ(HeadedKind):
    """Twin Q and V heads with target heads."""

    kind: Literal["digi_q"] = "digi_q"
    discount: Annotated[float, within(0, 1)] = 1.0
    """Discount per step."""
    target_rate: Annotated[float, within(0, 1, low_open=True)] = 0.05
    """The target head moves by this share towards the head after every update."""

    learns_from: ClassVar[Needs] = "outcome"
    output: ClassVar[Output] = "value"
    default_aggregate: ClassVar = "last"
    head_only: ClassVar[bool] = True

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """Twin heads for Q and V, and their targets, equal at first."""
        first, second = jax.random.split(key)
        layers = max(2, self.head_layers)
        head = {
            "q": init_head(spec, first, num_outputs=2, layers=layers, random=True),
            "v": init_head(spec, second, num_outputs=2, layers=layers, random=True),
        }
        return head, {"target": jax.tree.map(jnp.array, head)}

    def after_update(self, head: Params, fixed: Params) -> Params:
        """Moves the targets towards the heads."""
        return {"target": optax.incremental_update(head, fixed["target"], self.target_rate)}

    def saved(self, fixed: Params) -> Params:
        """Scores come from Q alone."""
        del fixed
        return {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
        """q, v [R, S, 2]; in training also target_q, target_next_v [R, S, 2] from the targets, without gradient."""
        after, starts = read_hidden(spec, weights, batch)
        before = jnp.concatenate([starts[:, None], after[:, :-1]], axis=1)
        found = {"q": apply_head(spec, weights.head["q"], after), "v": apply_head(spec, weights.head["v"], before)}
        if "target" not in weights.fixed:  # a finished model
            return found
        target = jax.lax.stop_gradient(weights.fixed["target"])
        return found | {
            "target_q": apply_head(spec, target["q"], after),
            "target_next_v": apply_head(spec, target["v"], after),
        }

    def training_loss(
        self, spec: Spec, found: dict[str, jax.Array], batch: Batch, constant: jax.Array
    ) -> rl.Loss:
        """Squared errors of Q to r + discount * V'(s') and of V to Q'(s, a), each twin to its own target."""
        del spec, constant
        mask = batch.step_mask & judged(batch)[:, None]
        discounts = rl.continuation_discounts(mask, discount=self.discount)
        last = mask & (rl.continuation_discounts(mask, discount=1.0) == 0)
        rewards = jnp.where(last, batch.outcome[:, None], 0.0)
        total, weight = jnp.float32(0), jnp.float32(0)
        for twin in range(2):
            target = rewards + discounts * found["target_next_v"][..., twin]
            of_q = rl.value_loss(found["q"][..., twin], target, mask)
            of_v = rl.value_loss(found["v"][..., twin], found["target_q"][..., twin], mask)
            total, weight = total + of_q.total + of_v.total, of_q.weight
        return rl.Loss(total, weight)

    def scores(self, spec: Spec, found: dict[str, jax.Array], batch: Batch) -> jax.Array:
        """[R, S]: the larger of the twins, as the paper's extraction takes it."""
        del spec
        return jnp.where(batch.step_mask, rl.twin(found["q"][..., 0], found["q"][..., 1], how="max"), 0.0)
