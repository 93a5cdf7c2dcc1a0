"""A run's compiled step on abstract arrays: what a trial trace, a plan and the tests of compiled programs look at."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.models import ModelConfig
from prm_jax.models.loading import frozen_shapes
from prm_jax.models.rows import row_axes
from prm_jax.models.sharding import placed_shapes, rows_over, shardings_for
from prm_jax.prime.batch import Batch, Frozen, State
from prm_jax.prime.options import Options
from prm_jax.prime.sources import make_source
from prm_jax.prime.start import Start, even_ways, frozen_arrays, initial_prm, make_setup
from prm_jax.prime.step import Setup, Step, init_state, make_step

_INSIDE = ("implicit", "critic", "policy")
"""Sources that are part of the compiled step and need neither a task nor files."""


def abstract_batch(options: Options, rows: int, columns: int, *, process: bool = False) -> Batch:
    """The shapes and dtypes of a batch of a run.

    Args:
      options: which decide what arrays there are.
      rows: B.
      columns: T; no column is left out of the head's work, as with the shortest prompts.
      process: with rewards that were computed on the host.
    """

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    return Batch(
        tokens=array(np.int32, rows, columns),
        mask=array(np.bool_, rows, columns),
        keep=array(np.bool_, rows),
        outcome=array(np.float32, rows),
        group_ids=array(np.int32, rows),
        step_ids=array(np.int32, rows, columns),
        judged=array(np.bool_, rows),
        process=array(np.float32, rows, columns) if process else None,
        weights=array(np.float32, rows) if options.rollout.weights != "none" else None,
        confidence=array(np.float32, rows) if "confidence" in options.reward.shaping else None,
        behaviour_logp=array(np.float32, rows, columns),
        version=array(np.int32, rows, columns),
    )


def abstract_step(
    options: Options, config: ModelConfig, prm_config: ModelConfig | None = None, *, mesh: Mesh | None = None
) -> tuple[Step, tuple[State, Frozen, Batch]]:
    """A run's step and its arguments, without weights, task or tokenizer: ``step.lower(*arguments).compile()``.

    Args:
      options: of the run. Process rewards of other sources than implicit, critic and policy are an input of the step.
      config: the policy's architecture with its run-time fields, its ``dtype`` that of the weights in the file.
      prm_config: the online PRM's, where it is another one.
      mesh: devices, which need not be of this machine; None for the default device.

    Returns:
      (step, (state, frozen arrays, batch)), all abstract and with their shardings on the mesh.

    Raises:
      UserError: an unknown shaping, estimator or loss; a mesh that does not divide a dimension of the model.
    """
    rows = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    columns = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    prm_base = None
    if prm_config is not None:
        prm_base = frozen_shapes(prm_config, dataclasses.replace(options.model, path=initial_prm(options)))
    bases = frozen_shapes(config, options.model), prm_base

    def composed(base: Any, prm_base: Any) -> tuple[Setup, Frozen]:
        ways = 1 if mesh is None else even_ways(options, rows_over(mesh))
        own = base if prm_base is None else prm_base
        start = Start(None, None, config, None, prm_config or config, None, base, own, ways)  # type: ignore[arg-type]
        source = make_source(options, start) if options.reward.source in _INSIDE else None
        return make_setup(options, start, source), frozen_arrays(start, source)

    def initial(base: Any, prm_base: Any) -> State:
        return init_state(*composed(base, prm_base), jax.random.key(0))

    state = jax.eval_shape(initial, *bases)
    shardings = None if mesh is None else shardings_for(state, mesh)
    if mesh is not None:
        state, bases = placed_shapes(state, shardings), placed_shapes(bases, shardings_for(bases, mesh))
    setup, frozen = composed(*bases)
    given = options.advantage.process_coef != 0 and setup.source is None
    batch = abstract_batch(options, rows, columns, process=given)
    if mesh is not None:
        sharding = NamedSharding(mesh, P(row_axes(mesh, rows)))
        batch = placed_shapes(batch, jax.tree.map(lambda _: sharding, batch))
    return make_step(setup, shardings=shardings), (state, frozen, batch)
