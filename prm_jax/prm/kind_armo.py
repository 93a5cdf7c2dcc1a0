"""Several objectives on frozen features, weighed by a gate that reads the prompt: ArmoRM, arXiv 2406.12845.

Stage one is a ridge regression for each objective, in closed form; stage two trains the gate on preferences.
"""

import jax
import jax.numpy as jnp

from prm_jax import rl, stats
from prm_jax.prm.forward import Spec, Weights, apply_head, at_last, init_head, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.runs.learner import Params


def init(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """A gate of two layers, and regressions that are still zero."""
    count = len(spec.objectives)
    fixed = {
        "kernel": jnp.zeros((spec.config.hidden_size, count), jnp.float32),
        "transform": jnp.eye(count, dtype=jnp.float32),
    }
    return {"gate": init_head(spec, key, num_outputs=count, layers=max(2, spec.options.head_layers))}, fixed


def forward(spec: Spec, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
    """Objectives [R, S, K], reward [R, S], features [R, D] of the last step."""
    steps, starts = read_hidden(spec, weights, batch)
    objectives = steps @ jax.lax.stop_gradient(weights.fixed["kernel"])
    gates = rl.objective_gates(
        apply_head(spec, weights.head["gate"], starts), temperature=spec.options.gate_temperature
    )
    transform = jax.lax.stop_gradient(weights.fixed["transform"])
    reward = rl.gated_objectives(objectives, gates[:, None], transform=transform)
    return {"objectives": objectives, "reward": reward, "features": at_last(steps, batch)}


def loss(spec: Spec, found: dict[str, jax.Array], batch: Batch, constant: jax.Array) -> rl.Loss:
    """Bradley-Terry on the gated reward; only the gate moves."""
    del constant
    return rl.all_pairs_loss(
        at_last(found["reward"], batch), batch.outcome, batch.group_ids, num_groups=batch.outcome.shape[0],
        label_smoothing=spec.options.label_smoothing,
    )  # fmt: skip


def scores(spec: Spec, found: dict[str, jax.Array], batch: Batch) -> jax.Array:
    """[R, S]: the gated reward after every step."""
    del spec
    return jnp.where(batch.step_mask, found["reward"], 0.0)


def fit(spec: Spec, features: jax.Array, objectives: jax.Array, known: jax.Array) -> Params:
    """Stage one.

    Args:
      features: [M, D], of each solution's last step.
      objectives: [M, K].
      known: [M, K] bool; a regression uses the rows that have its objective.

    Returns:
      ``{"kernel": [D, K], "transform": [K, K]}``; the transform takes the verbosity objective out of the others as far
      as they correlate with it on these rows, and is the identity without one.
    """

    def one(target: jax.Array, weight: jax.Array) -> jax.Array:
        return stats.weighted_ridge(features, target, weight, l2=spec.options.ridge).coefficients

    kernel = jax.vmap(one, in_axes=1, out_axes=1)(objectives, known.astype(jnp.float32))
    transform = jnp.eye(len(spec.objectives), dtype=jnp.float32)
    if spec.options.verbosity:
        index = spec.objectives.index(spec.options.verbosity)
        fitted = features @ kernel
        transform = stats.debias_transform(stats.decorrelate(fitted, fitted[:, index]), reference_index=index)
    return {"kernel": kernel, "transform": transform}
