"""Step values by temporal differences on frozen features, with twins and slow targets: Digi-Q, arXiv 2502.15760.

Q(s_k, a_k) reads the state after step k, V(s_k) the state before it; the reward is the outcome, at the last step.
"""

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prm.forward import Spec, Weights, apply_head, init_head, judged, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.runs.learner import Params


def init(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """Twin heads for Q and V, and their targets, equal at first."""
    first, second = jax.random.split(key)
    layers = max(2, spec.options.head_layers)
    head = {
        "q": init_head(spec, first, num_outputs=2, layers=layers, random=True),
        "v": init_head(spec, second, num_outputs=2, layers=layers, random=True),
    }
    return head, {"target": jax.tree.map(jnp.array, head)}


def forward(spec: Spec, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
    """q, v [R, S, 2]; while there are slow heads, target_q, target_next_v [R, S, 2] from them, without gradient."""
    after, starts = read_hidden(spec, weights, batch)
    before = jnp.concatenate([starts[:, None], after[:, :-1]], axis=1)
    found = {"q": apply_head(spec, weights.head["q"], after), "v": apply_head(spec, weights.head["v"], before)}
    if "target" not in weights.fixed:  # a finished model, which scores by q alone
        return found
    target = jax.lax.stop_gradient(weights.fixed["target"])
    return found | {
        "target_q": apply_head(spec, target["q"], after),
        "target_next_v": apply_head(spec, target["v"], after),
    }


def loss(spec: Spec, found: dict[str, jax.Array], batch: Batch, constant: jax.Array) -> rl.Loss:
    """Squared errors of Q to r + discount * V'(s') and of V to Q'(s, a), each twin to its own target."""
    del constant
    mask = batch.step_mask & judged(batch)[:, None]
    going_on = rl.continuation_discounts(mask, discount=spec.options.discount)
    last = mask & (rl.continuation_discounts(mask, discount=1.0) == 0)
    rewards = jnp.where(last, batch.outcome[:, None], 0.0)
    total, weight = jnp.float32(0), jnp.float32(0)
    for twin in range(2):
        target = rewards + going_on * found["target_next_v"][..., twin]
        of_q = rl.value_loss(found["q"][..., twin], target, mask)
        of_v = rl.value_loss(found["v"][..., twin], found["target_q"][..., twin], mask)
        total, weight = total + of_q.total + of_v.total, of_q.weight
    return rl.Loss(total, weight)


def scores(spec: Spec, found: dict[str, jax.Array], batch: Batch) -> jax.Array:
    """[R, S]: the larger of the twins, as the paper's extraction takes it."""
    del spec
    return jnp.where(batch.step_mask, rl.twin(found["q"][..., 0], found["q"][..., 1], how="max"), 0.0)
