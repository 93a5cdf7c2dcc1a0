"""The loop of one policy: compose the step, warm the source up, and hand everything to `runs.fit`."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prm_jax.data.pipeline import PromptStream
from prm_jax.errors import UserError
from prm_jax.models.sharding import shard_batch, shard_params, shardings_for
from prm_jax.prime.batch import Batch, Frozen, State
from prm_jax.prime.collect import Collected, Collector
from prm_jax.prime.evaluate import Evaluator, PRMProbe, make_probe
from prm_jax.prime.options import Options
from prm_jax.prime.responses import ADAPTER_STREAM, EVAL_STREAM, Sampler
from prm_jax.prime.samples import SampleWriter
from prm_jax.prime.sources import ImplicitPRM, check_source, make_source
from prm_jax.prime.start import Overrides, Start, frozen_arrays, make_setup
from prm_jax.prime.step import Setup, Step, init_state, make_step
from prm_jax.prime.warm_up import PHASE, warm_up, warm_up_rollouts
from prm_jax.runs.callbacks import Callback, Event
from prm_jax.runs.fitting import FitOptions, Frontend, fit, load_best
from prm_jax.runs.integrity import fingerprint
from prm_jax.runs.learner import Params
from prm_jax.runs.metrics_log import read_metrics
from prm_jax.runs.run_dir import RunDir


@dataclasses.dataclass(frozen=True)
class Trained:
    """How the training of one policy ended.

    Attributes:
      before, after: evaluation metrics (``eval/...``, ``prm_eval/...``) at step 0 and at the end.
      warmed_up: the source's metrics after its warm-up, {} without one.
      rollouts: responses sampled for training.
      policy: the policy's whole parameters; of the best evaluation where one is kept.
      prm: the online implicit PRM's whole parameters, or None.
      best_step: step of the policy that was kept as the best, or -1.
    """

    before: dict[str, float]
    after: dict[str, float]
    warmed_up: dict[str, float]
    rollouts: int
    policy: Params
    prm: Params | None
    best_step: int = -1


@dataclasses.dataclass
class Composed:
    """A step with everything that the loop needs around it.

    Attributes:
      options: of the run.
      start: with its parameters placed.
      setup, frozen: of the compiled step.
      sampler: samples and verifies.
      mesh: devices, or None for one.
    """

    options: Options
    start: Start
    setup: Setup
    frozen: Frozen
    sampler: Sampler
    mesh: Mesh | None

    def initial_state(self) -> State:
        """The state before any training."""
        key = jax.random.fold_in(jax.random.key(self.options.seed), ADAPTER_STREAM)
        return init_state(self.setup, self.frozen, key)

    def policy_params(self, state: State) -> Params:
        """The policy's whole parameters."""
        return self.setup.policy.learner.params(state.policy, self.frozen.reference)

    def place(self, batch: Batch) -> Batch:
        """A batch on the mesh."""
        return batch if self.mesh is None else shard_batch(batch, self.mesh)

    def place_state(self, state: State) -> State:
        """A state on the mesh."""
        return state if self.mesh is None else shard_params(state, self.mesh)

    def step(self, compiled: Step) -> Any:
        """The step that `fit` calls: learns from a collected batch and keeps its rewards for the samples."""

        def step(state: State, batch: Collected) -> tuple[State, dict[str, jax.Array]]:
            if batch.empty:  # an optimiser step without a gradient would still move the weights by their momentum
                return state, {}
            state, metrics, rewards = compiled(state, self.frozen, self.place(batch.arrays))
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
    return Composed(options, start, setup, frozen_arrays(start, source), sampler, mesh)


def train_policy(
    composed: Composed, probe: PRMProbe | None, *, run: RunDir, frontend: Frontend, callbacks: Sequence[Callback] = ()
) -> Trained:
    """Trains one policy in an open run directory, from its checkpoint when the run is resumed.

    Raises:
      InterruptedRun, DivergedRun: see `fit`.
      UserError: no evaluation problem fits, or the weights have changed since the checkpoint was written.
    """
    options, setup, frozen, sampler = composed.options, composed.setup, composed.frozen, composed.sampler
    key = jax.random.key(options.seed)
    judge_source = make_probe(
        probe, setup.source, sampler, frozen, composed.policy_params, batch_size=options.eval.batch_size
    )
    evaluate = Evaluator(
        composed.start.task, sampler, options.eval, _eval_problems(options, sampler), options.rollout.temperature,
        jax.random.fold_in(key, EVAL_STREAM), composed.policy_params, judge_source,
    )  # fmt: skip
    collector = Collector(
        sampler, PromptStream(composed.start.task.train, options.seed), options.rollout, key, composed.policy_params,
        source=setup.source, max_empty_steps=options.max_empty_steps, say=frontend.say,
        confidence_pattern=options.reward.confidence_pattern if "confidence" in options.reward.shaping else "",
    )  # fmt: skip
    warms_up = setup.source is not None and setup.source.learns and bool(options.prm.pretrain_rollouts)
    if warms_up:
        collector.sampled += warm_up_rollouts(options)
    shape = jax.eval_shape(composed.initial_state)
    shardings = None if composed.mesh is None else shardings_for(shape, composed.mesh)

    def initial_state() -> State:
        state = composed.place_state(composed.initial_state())
        if not warms_up:
            return state
        return warm_up(
            options, composed.start, setup, frozen, state, sampler, run=run, frontend=frontend, probe=judge_source,
            place=composed.place, shardings=shardings,
        )[0]  # fmt: skip

    fitted = fit(
        initial_state,
        composed.step(make_step(setup, shardings=shardings)),
        collector,
        run=run,
        options=_fit_options(options),
        evaluate=evaluate,
        callbacks=[SampleWriter(sampler, options.sample_every), _FirstStep(frontend, options), *callbacks],
        frontend=frontend,
        identity=_identity(frozen),
        target=shape,
        shardings=shardings,
    )
    best = load_best(run, shape) if options.eval.keep_best else None
    state = fitted.state if best is None else best
    prm = setup.source.params(state.source) if isinstance(setup.source, ImplicitPRM) else None
    warmed_up = _last_probe(run) if warms_up else {}
    return Trained(
        fitted.before, fitted.after, warmed_up, collector.sampled, composed.policy_params(state), prm,
        fitted.best_step,
    )  # fmt: skip


class _FirstStep:
    """Warns when the first step says that answers cannot be found in the responses."""

    def __init__(self, frontend: Frontend, options: Options) -> None:
        self.frontend, self.options = frontend, options

    def __call__(self, event: Event) -> None:
        share = event.metrics.get("rollout/unanswered", 0.0)
        if event.kind == "step" and event.step == 1 and share > 0.5:
            self.frontend.say(
                f"warning: the verifier found no answer in {100 * share:.0f} % of the responses of step 1; see "
                f"samples.txt, and check the task's verifier and answer extraction (--task.options) or raise "
                f"--rollout.max-new-tokens (now {self.options.rollout.max_new_tokens})"
            )


def _fit_options(options: Options) -> FitOptions:
    return FitOptions(
        steps=options.steps, save_every=options.save_every, eval_every=options.eval.every,
        keep_checkpoints=options.keep_checkpoints, max_bad_steps=options.max_bad_steps, best=options.eval.keep_best,
        best_is="min" if options.eval.keep_best.endswith("loss") else "max", patience=options.eval.patience,
    )  # fmt: skip


def _eval_problems(options: Options, sampler: Sampler) -> list[Any]:
    problems = sampler.fitting(sampler.task.eval[: options.eval.problems])
    if not problems:
        raise UserError(
            f"every evaluation prompt is longer than --rollout.max-prompt-tokens {sampler.max_prompt_tokens}"
        )
    return problems


def _identity(frozen: Frozen) -> str:
    digests = json.dumps(fingerprint((frozen.reference, frozen.constants)), sort_keys=True).encode()
    return hashlib.blake2b(digests, digest_size=16).hexdigest()


def _last_probe(run: RunDir) -> dict[str, float]:
    path = run.path / "phases" / PHASE
    if not (path / "metrics.jsonl").is_file():
        return {}
    records = [record for record in read_metrics(path) if any(name.startswith("prm_eval/") for name in record)]
    found = records[-1] if records else {}
    return {name: value for name, value in found.items() if name.startswith("prm_eval/") and np.isfinite(value)}
