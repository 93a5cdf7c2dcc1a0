"""The parts of a run put together: source, reward, advantage, loss, models and devices."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from prm_jax.models.local_copies import local_copy
from prm_jax.models.sharding import placed_shapes, rows_over, shard_batch
from prm_jax.prime.batch import Batch, Frozen, State
from prm_jax.prime.collect import Collected
from prm_jax.prime.layout import Layout, make_layout
from prm_jax.prime.options import Options
from prm_jax.prime.responses import ADAPTER_STREAM
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources import ImplicitPRM, check_source, make_source
from prm_jax.prime.sources.critic import CriticSource
from prm_jax.prime.start import Overrides, Start, frozen_arrays, make_setup
from prm_jax.prime.step import Setup, Step, init_state
from prm_jax.runs.host_memory import Places, offloaded, on_device
from prm_jax.runs.learner import Params
from prm_jax.runs.processes import to_global


@dataclasses.dataclass
class Composed:
    """A step with everything that the loop needs around it.

    Attributes:
      options: of the run.
      start: with its parameters placed.
      setup, frozen: of the compiled step.
      sampler: samples and verifies.
      mesh: devices, or None for one.
      layout: of its batches.
    """

    options: Options
    start: Start
    setup: Setup
    frozen: Frozen
    sampler: Sampler
    mesh: Mesh | None
    layout: Layout

    def initial_state(self) -> State:
        """The state before any training."""
        key = jax.random.fold_in(jax.random.key(self.options.seed), ADAPTER_STREAM)
        return init_state(self.setup, self.frozen, key)

    def policy_params(self, state: State) -> Params:
        """The policy's whole parameters."""
        return self.setup.policy.learner.params(state.policy, self.frozen.reference)

    def sampling_params(self, params: Params) -> Params:
        """Whole parameters on this process's own devices, where it samples; collective."""
        params = on_device(params)
        return params if self.mesh is None else local_copy(params, self.mesh)

    def place(self, batch: Batch) -> Batch:
        """A batch on the mesh."""
        return batch if self.mesh is None else shard_batch(batch, self.mesh)

    def place_state(self, state: State) -> State:
        """A state on the mesh, and in host memory where it is offloaded; arrays that are there already stay."""
        shardings = self._places()
        if shardings is None:
            return state
        return jax.tree.map(lambda x, s: x if x.sharding == s else to_global(x, s), state, shardings)

    def target(self) -> State:
        """Shapes, dtypes and, on a mesh or with offloading, shardings of the state."""
        return placed_shapes(jax.eval_shape(self.initial_state), self._places())

    def shardings(self) -> State | None:
        """How the state is laid out on the mesh; None on one device."""
        return None if self.mesh is None else self._places()

    def _places(self) -> State | None:
        """The sharding of every leaf, in the device's memory or the host's; None on one device without offloading."""
        setup, source = self.setup, self.setup.source
        shapes = jax.eval_shape(self.initial_state)
        found: dict[str, Any] = {}
        plain: State = Places(self.mesh).shardings(shapes)
        if setup.policy.learner.offload:
            found["policy_opt"] = offloaded(plain.policy_opt, shapes.policy_opt)
        if setup.critic is not None and setup.critic.learner.offload:
            found["critic_opt"] = offloaded(plain.critic_opt, shapes.critic_opt)
        if isinstance(source, ImplicitPRM) and source.learner.offload:
            opt = offloaded(plain.source.opt, shapes.source.opt)
            found["source"] = dataclasses.replace(plain.source, opt=opt)
        if isinstance(source, CriticSource) and source.critic.learner.offload:
            found["source"] = (plain.source[0], offloaded(plain.source[1], shapes.source[1]))
        return None if self.mesh is None and not found else dataclasses.replace(plain, **found)

    def step(self, compiled: Step) -> Any:
        """The step that `fit` calls: learns from a collected batch and keeps its rewards for the samples."""

        def step(state: State, batch: Collected) -> tuple[State, dict[str, jax.Array]]:
            if batch.empty:  # an optimiser step without a gradient would still move the weights by their momentum
                return state, {}
            arrays, sizes = self.layout(batch.arrays)
            state, metrics, rewards = compiled(state, self.frozen, self.place(arrays))
            batch.metrics.update(sizes)
            batch.responses = batch.responses.cut(arrays.mask.shape[1])  # as many columns as the rewards
            batch.rewards = None if self.setup.source is None else rewards
            return state, metrics

        return step


def compose(
    options: Options, start: Start, base: Params, sampler: Sampler, mesh: Mesh | None, overrides: Overrides
) -> Composed:
    """Puts the parts of a run together.

    Raises:
      UserError: a part that cannot be found, or has another signature than it must.
    """
    start = start.placed(base, mesh, options)
    source = overrides.source
    if options.advantage.process_coef == 0:
        source = None
    elif source is None:
        source = make_source(options, start)
    else:
        source = check_source(source, type(source).__name__)
    setup = make_setup(options, start, source, overrides)
    layout = make_layout(options, start.ways, 1 if mesh is None else rows_over(mesh))
    return Composed(options, start, setup, frozen_arrays(start, source), sampler, mesh, layout)
