"""One optimiser step of a process reward model, its gradient accumulated exactly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prm_jax import rl
from prm_jax.models import ExpertLoad, LoRAConfig, init_lora, join, round_through
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Spec, Weights
from prm_jax.runs.expert_balance import expert_metrics, with_balance
from prm_jax.runs.host_memory import Places, offloaded, places_of
from prm_jax.runs.learner import Params, accumulate_gradients, guarded_update


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a training step changes.

    Attributes:
      trainable: {"model": parameters, adapters, or {} when frozen; "head": the head}.
      opt_state: of the optimiser.
      fixed: regressions and target heads.
    """

    trainable: Params
    opt_state: Any
    fixed: Params


@dataclasses.dataclass(frozen=True)
class PRMLearner:
    """The static part of a run.

    Attributes:
      spec: the model.
      optimizer: turns gradients of ``TrainState.trainable`` into updates.
      lora: adapters; None where all parameters train, or none.
      head_only: the language model does not train.
      offload: the optimiser's state is in pinned host memory between updates.
      bits: head and adapters are used rounded to so many bits; None for full precision.
    """

    spec: Spec
    optimizer: optax.GradientTransformation
    lora: LoRAConfig | None = None
    head_only: bool = False
    offload: bool = False
    bits: int | None = None

    def init(self, base: Params, key: jax.Array) -> TrainState:
        """The initial state: `base` with a new head, and adapters without effect if there are any.

        Where `base` is on a mesh, every device makes its own shards. `key` is consumed.
        """

        def make(base: Params, key: jax.Array) -> tuple[Params, Params]:
            first, second = jax.random.split(key)
            head, fixed = self.spec.kind.init(self.spec, first)
            model: Params = {}
            if self.lora is not None:
                model = init_lora(self.spec.config, base, second, self.lora)
            elif not self.head_only:
                # A copy: the state is donated to every step, and the base may remain as the reference.
                model = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), base)
            return {"model": model, "head": head}, fixed

        places = places_of(base)
        trainable, fixed = places.make(make, base, key)
        opt_state = dataclasses.replace(places, offload=self.offload).make(self.optimizer.init, trainable)
        return TrainState(trainable, opt_state, fixed)

    def shardings(self, shapes: TrainState, mesh: Mesh | None) -> TrainState | None:
        """The sharding of every leaf of the state; None on one device without offloading."""
        if mesh is None and not self.offload:
            return None
        found: TrainState = Places(mesh).shardings(shapes)
        if not self.offload:
            return found
        return dataclasses.replace(found, opt_state=offloaded(found.opt_state, shapes.opt_state))

    def weights(self, trainable: Params, fixed: Params, base: Params | None) -> Weights:
        """The whole model's arrays; nothing is copied, and only with `bits` anything computed."""
        if self.bits is not None:
            trainable = jax.tree.map(self._rounded, trainable)
        model = trainable["model"]
        if self.head_only:
            model = base
        elif self.lora is not None:
            assert base is not None
            model = join(base, model)
        reference = base if self.spec.kind.compares else None
        return Weights(model, trainable["head"], fixed, reference)


    def _rounded(self, x: jax.Array) -> jax.Array:
        return round_through(x, bits=self.bits) if x.ndim > 1 and self.bits is not None else x


PRMStep = Callable[[TrainState, Params | None, Batch, Batch | None], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    learner: PRMLearner, *, microbatches: int = 1, shardings: TrainState | None = None, balance_coef: float = 0.0
) -> PRMStep:
    """Compiles ``(state, base, batch, mismatched) -> (state, metrics)``; the state is donated.

    Args:
      learner: of the run.
      microbatches: leading axis of every leaf of a batch.
      shardings: sharding of the new state, equal to that of the old one; None on one device.
      balance_coef: weight of the balance of a sparse model's experts, see ``with_balance``.

    Returns:
      The step.  `base` holds the frozen parameters (reference, base of adapters, features); `mismatched` is a
      second batch that the loss's constant is computed from (``Kind.extra_batch``), or None.  Metrics: prm/loss, the
      loss's own, those of ``expert_metrics`` of a sparse model, prm/grad_norm, prm/skipped.
    """
    spec, kind = learner.spec, learner.spec.kind

    def step(
        state: TrainState, base: Params | None, batch: Batch, other: Batch | None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        constant = jnp.float32(0)
        if other is not None:
            weights = learner.weights(state.trainable, state.fixed, base)
            constant = kind.batch_constant(spec, weights, other)

        def loss_fn(trainable: Params, pieces: Batch) -> tuple[rl.Loss, None]:
            piece = jax.tree.map(lambda x: x[0], pieces)
            loads: list[ExpertLoad] | None = [] if spec.config.num_experts else None
            weights = dataclasses.replace(learner.weights(trainable, state.fixed, base), loads=loads)
            loss = kind.training_loss(spec, kind.forward(spec, weights, piece), piece, constant)
            load = jax.tree.map(lambda *parts: sum(parts), *loads) if loads else None
            return with_balance(loss, load, balance_coef), None

        grads, loss, _ = accumulate_gradients(loss_fn, state.trainable, batch, pieces=microbatches)
        trainable, opt_state, health = guarded_update(learner.optimizer, grads, state.opt_state, state.trainable)
        fixed = kind.after_update(trainable["head"], state.fixed)
        metrics = {"loss": loss.mean(), "counted": loss.weight, **expert_metrics(loss.summary()), **health}
        new = TrainState(trainable, opt_state, fixed)
        if shardings is not None:
            new = jax.lax.with_sharding_constraint(new, shardings)
        return new, {f"prm/{name}": value for name, value in metrics.items()}

    return jax.jit(step, donate_argnums=0)


def make_scorer(learner: PRMLearner) -> Callable[[TrainState, Params | None, Batch], tuple[jax.Array, rl.Loss]]:
    """Compiles ``(state, base, batch) -> (step scores [R, S], Loss)`` for batches without a leading axis."""
    spec, kind = learner.spec, learner.spec.kind

    def score(state: TrainState, base: Params | None, batch: Batch) -> tuple[jax.Array, rl.Loss]:
        weights = learner.weights(state.trainable, state.fixed, base)
        found = kind.forward(spec, weights, batch)
        return kind.scores(spec, found, batch), kind.training_loss(spec, found, batch, jnp.float32(0))

    return jax.jit(score)
