"""The warm-up of a learning source: it learns from rollouts of the initial policy before the policy does."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.data import load_task
from prm_jax.data.pipeline import PromptStream
from prm_jax.data.problems import Task
from prm_jax.models import check_same_vocabulary
from prm_jax.prime.batch import Batch, State
from prm_jax.prime.collect import Collector
from prm_jax.prime.compose import Composed
from prm_jax.prime.options import Options
from prm_jax.prime.responses import PRETRAIN_STREAM
from prm_jax.prime.sizes import replay_places, warm_up_prompts, warm_up_rollouts, warm_up_steps
from prm_jax.prime.start import Start
from prm_jax.prime.step import make_keep_step, make_source_step
from prm_jax.runs.fitting import FitOptions, Frontend, fit
from prm_jax.runs.run_dir import RunDir
from prm_jax.runs.stopping import InterruptedRun

PHASE = "prm_warm_up"


def is_warmed_up(options: Options, source: Any) -> bool:
    """Whether a source learns from rollouts of the initial policy first."""
    return source is not None and bool(source.learns) and bool(options.prm.pretrain_rollouts)


def warm_up(
    composed: Composed,
    state: State,
    *,
    run: RunDir,
    frontend: Frontend,
    probe: Callable[[Any], dict[str, float]] | None,
) -> State:
    """Trains the source on rollouts of the initial policy by their outcomes; no step label is ever used.

    Args:
      composed: the parts of the run.
      state: before the warm-up, on the mesh.
      run: the run directory; its phase ``prm_warm_up`` is used, so that an interrupted warm-up resumes.
      frontend: console and signals.
      probe: ``state -> metrics`` of the source; None: none.

    Returns:
      The state after it.
    """
    options, setup, ways = composed.options, composed.setup, composed.start.ways
    batch_prompts = warm_up_prompts(options)
    ways = ways if batch_prompts % (ways * getattr(setup.source, "microbatches", 1)) == 0 else 1
    source = setup.source.for_warm_up(ways) if hasattr(setup.source, "for_warm_up") else setup.source
    compiled = make_source_step(dataclasses.replace(setup, source=source), shardings=composed.shardings())
    batches = _Batches(composed, frontend, batch_prompts)
    with run.phase(PHASE) as phase:
        fitted = fit(
            lambda: state,
            lambda current, batch: compiled(current, composed.frozen, composed.place(composed.layout.cut(batch))),
            batches,
            run=phase,
            options=FitOptions(
                warm_up_steps(options),
                save_every=max(50, options.save_every),
                eval_every=0,
                keep_checkpoints=1,
                max_bad_steps=1,
            ),  # fmt: skip
            evaluate=probe,
            frontend=dataclasses.replace(frontend, title="PRM warm-up", hint="Lower --prm.learning-rate"),
            target=composed.target(),
        )
    if replay_places(options)[1]:
        return _kept(composed, fitted.state, batches)
    return fitted.state


def warm_up_task(options: Options, start: Start) -> Task:
    """The task of the warm-up's rollouts: the run's, or one of the same name with easier problems.

    Raises:
      UserError: options that the task does not take, or another vocabulary than the run's.
    """
    if not options.prm.pretrain_task_options:
        return start.task

    def load() -> Task:
        task = load_task(options.task.name, **{**options.task.options, **options.prm.pretrain_task_options})
        own, others = task.tokenizer(), start.task.tokenizer()
        if own is not None and others is not None:
            check_same_vocabulary(others, own, names=("the task", "--prm.pretrain-task-options"))
        return task

    return start.once("the task of the PRM's warm-up", load)


def _kept(composed: Composed, state: State, batches: "_Batches") -> State:
    """The state with all rollouts of the warm-up in the source's replay buffer."""
    compiled = make_keep_step(composed.setup, shardings=composed.shardings())
    data, count = batches.rollouts(), warm_up_rollouts(composed.options)
    size = batches.batch_prompts * composed.options.rollout.samples_per_prompt
    for index in range(-(-count // size)):
        first = min(index * size, count - size)  # the last ones overlap, so that one program serves all
        rows = jax.tree.map(lambda x, first=first: x[first : first + size], data)
        placed = composed.place(composed.layout.cut(rows))
        state = compiled(state, composed.frozen, placed, jnp.asarray(first, jnp.int32))
    return state


class _Batches:
    """Minibatches of whole groups, in another order in each epoch; rollouts are sampled when the first is drawn."""

    def __init__(self, composed: Composed, frontend: Frontend, batch_prompts: int) -> None:
        options = composed.options
        self.options, self.start, self.frozen, self.sampler, self.source = (
            options, composed.start, composed.frozen, composed.sampler, composed.setup.source,
        )  # fmt: skip
        self.frontend, self.batch_prompts = frontend, batch_prompts
        self.sampling_params = composed.sampling_params
        self.prompts = warm_up_rollouts(options) // options.rollout.samples_per_prompt
        self.task = warm_up_task(options, composed.start)
        self.data: Batch | None = None

    def draw(self, state: Any, step: int) -> Batch:
        del state
        data = self.rollouts()
        size, per_epoch = self.options.rollout.samples_per_prompt, max(1, self.prompts // self.batch_prompts)
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng((self.options.seed, PRETRAIN_STREAM, epoch)).permutation(self.prompts)
        chosen = order[index * self.batch_prompts : (index + 1) * self.batch_prompts]
        rows = (chosen[:, None] * size + np.arange(size)).reshape(-1)
        batch = jax.tree.map(lambda x: x[rows], data)
        group_ids: Any = np.repeat(np.arange(len(chosen), dtype=np.int32), size)
        return dataclasses.replace(batch, group_ids=group_ids)

    def position(self) -> dict[str, Any]:
        return {}

    def restore(self, position: dict[str, Any]) -> None:
        del position  # the rollouts are sampled again, with the same keys

    def rollouts(self) -> Batch:
        """All rollouts, sampled when they are first needed."""
        if self.data is None:
            self.data = self._rollouts()
        return self.data

    def _rollouts(self) -> Batch:
        """Rows of the initial policy's responses.

        The prompts come in an order of their own, so that runs with and without a warm-up see the same ones later.
        """
        options, size = self.options, self.options.rollout.samples_per_prompt
        stream = PromptStream(self.task.train, (options.seed + PRETRAIN_STREAM) % 2**32)
        rollout = dataclasses.replace(
            options.rollout, filter="none", weights="none",
            prompts_per_step=min(self.prompts, max(1, options.eval.batch_size // size)),
        )  # fmt: skip
        key = jax.random.fold_in(jax.random.key(options.seed), PRETRAIN_STREAM)
        collector = Collector(
            dataclasses.replace(self.sampler, task=self.task),
            stream,
            rollout,
            key,
            policy_params=lambda params: params,
            source=self.source,
        )
        params = self.sampling_params(self.frozen.reference)
        parts: list[Batch] = []
        for index in range(-(-self.prompts // rollout.prompts_per_step)):
            parts.append(collector.collect(params, index).arrays)
            done = min((index + 1) * rollout.prompts_per_step, self.prompts) * size
            self.frontend.say(f"PRM warm-up: {done} of {self.prompts * size} rollouts")
            interrupts = self.frontend.interrupts
            if interrupts is not None and interrupts.should_stop():
                raise InterruptedRun(
                    f"stopped by {interrupts.signal_name} while sampling for the PRM warm-up, which --resume repeats"
                )
        first = min(part.start for part in parts)
        parts = [dataclasses.replace(part, start=first) for part in parts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: self.prompts * size], *parts)
