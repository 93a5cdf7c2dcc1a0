"""The loop of one policy: compose the step, warm the source up, and hand everything to `runs.fit`."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.pipeline import PromptStream
from prm_jax.errors import UserError
from prm_jax.prime.background import BackgroundCollector
from prm_jax.prime.batch import Frozen, State
from prm_jax.prime.collect import Collector
from prm_jax.prime.compose import Composed
from prm_jax.prime.engines import background_engines
from prm_jax.prime.evaluate import Evaluator, PRMProbe, make_fresh_probe, make_probe, make_step_scores
from prm_jax.prime.hacking_watch import HackingWatch
from prm_jax.prime.options import Options
from prm_jax.prime.responses import EVAL_STREAM
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.samples import SampleWriter
from prm_jax.prime.sizes import warm_up_rollouts
from prm_jax.prime.sources import ImplicitPRM
from prm_jax.prime.step import make_step
from prm_jax.prime.warm_up import PHASE, is_warmed_up, warm_up
from prm_jax.runs import processes
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
      for_source: those of them that only the source of process rewards used.
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
    for_source: int = 0


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
    scores = make_step_scores(
        setup.source, sampler, frozen, composed.policy_params, batch_size=options.eval.batch_size
    )  # fmt: skip
    judge_source = make_probe(probe, setup.source, scores)

    def sampling_params(state: State) -> Params:
        return composed.sampling_params(composed.policy_params(state))

    evaluate = Evaluator(
        composed.start.task, sampler, options.eval, _eval_problems(options, sampler), options.rollout.temperature,
        jax.random.fold_in(key, EVAL_STREAM), sampling_params, judge_source,
        make_fresh_probe(composed.start.task, probe, scores),
    )  # fmt: skip
    kind = BackgroundCollector if options.rollout.max_lag else Collector
    collector = kind(
        sampler, PromptStream(composed.start.task.train, options.seed), options.rollout, key, sampling_params,
        source=setup.source, max_empty_steps=options.max_empty_steps, say=frontend.say,
        confidence_pattern=options.reward.confidence_pattern if "confidence" in options.reward.shaping else "",
    )  # fmt: skip
    if isinstance(collector, BackgroundCollector):
        collector.engines = background_engines(options, composed.start, composed.mesh)
        _say_lag(options, frontend)
    warms_up = is_warmed_up(options, setup.source)
    if warms_up:
        collector.sampled += warm_up_rollouts(options)
        collector.for_source += warm_up_rollouts(options)

    def initial_state() -> State:
        state = composed.place_state(composed.initial_state())
        return warm_up(composed, state, run=run, frontend=frontend, probe=judge_source) if warms_up else state

    fitted = fit(
        initial_state,
        composed.step(make_step(setup, shardings=composed.shardings())),
        collector,
        run=run,
        options=_fit_options(options),
        evaluate=evaluate,
        callbacks=[
            SampleWriter(sampler, options.sample_every), _FirstStep(frontend, options),
            HackingWatch(options.watch, frontend.say), *callbacks,
        ],  # fmt: skip
        frontend=frontend,
        identity=_identity(frozen),
        target=composed.target(),
    )
    best = load_best(run, composed.target()) if options.eval.keep_best else None
    state = fitted.state if best is None else best
    prm = setup.source.params(state.source) if isinstance(setup.source, ImplicitPRM) else None
    warmed_up = _last_probe(run) if warms_up else {}
    return Trained(
        fitted.before, fitted.after, warmed_up, collector.sampled, composed.policy_params(state), prm,
        fitted.best_step, collector.for_source,
    )  # fmt: skip


def _say_lag(options: Options, frontend: Frontend) -> None:
    if processes.count() > 1:
        raise UserError("--rollout.max-lag is for one process: leave it out, or start one process")
    frontend.say(
        f"sampling and training at the same time, with weights at most {options.rollout.max_lag} updates old "
        "(--rollout.max-lag); the run is not reproducible"
    )
    if jax.default_backend() == "cpu" and not options.rollout.devices:
        frontend.say("warning: on a CPU sampling and training compete for the same cores, so nothing is gained")


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
        profile=options.profile,
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
    path, found = run.path / "phases" / PHASE, {}
    if processes.is_first() and (path / "metrics.jsonl").is_file():
        records = [record for record in read_metrics(path) if any(name.startswith("prm_eval/") for name in record)]
        last = records[-1] if records else {}
        found = {name: value for name, value in last.items() if name.startswith("prm_eval/") and np.isfinite(value)}
    return processes.broadcast_from_first(found, name="the probe after the warm-up")
