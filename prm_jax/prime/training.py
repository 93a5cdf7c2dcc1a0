"""`prime.train`: warm start, PRIME, the outcome-only baseline and the report, in one resumable run directory."""

import dataclasses
import io
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from prm_jax import prm as prms
from prm_jax.data import describe_task, load_task
from prm_jax.data.problems import Task
from prm_jax.errors import UserError
from prm_jax.models import load_weights, manual_layers, merge, save_weights
from prm_jax.models.loading import fresh_params
from prm_jax.models.qtensor import is_quantized
from prm_jax.models.sharding import check_expert_axis, check_spans_processes, make_mesh, rows_over
from prm_jax.prime.advantages import AdvantageFn
from prm_jax.prime.checked import checked_loss, checked_rewards, name_of
from prm_jax.prime.checks import check_options
from prm_jax.prime.compose import Composed, compose
from prm_jax.prime.engines import sampling_parts
from prm_jax.prime.evaluate import PRMProbe, can_be_probed, sample_in_batches
from prm_jax.prime.loop import Trained, train_policy
from prm_jax.prime.options import Options
from prm_jax.prime.plan import check_fits, planned_configs
from prm_jax.prime.policy import PolicyLoss
from prm_jax.prime.report import write_report
from prm_jax.prime.responses import EVAL_STREAM, INIT_STREAM
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.shaping import RewardFn
from prm_jax.prime.sizes import warm_up_rollouts, warm_up_steps
from prm_jax.prime.sources import RewardSource
from prm_jax.prime.start import Overrides, Start, load_start, offloads
from prm_jax.prime.traced import check_traceable
from prm_jax.prime.warm_start import warm_start
from prm_jax.prime.warm_up import is_warmed_up, warm_up_task
from prm_jax.resolve import check_signature, resolve
from prm_jax.runs import processes, shared_files
from prm_jax.runs.callbacks import Callback, Event
from prm_jax.runs.console import Console, Phase
from prm_jax.runs.fitting import Frontend
from prm_jax.runs.host_memory import check_host_memory, on_device
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.learner import Params
from prm_jax.runs.run_dir import RunDir, open_run
from prm_jax.runs.stopping import InterruptedRun

BASELINE = "outcome_only"
"""The outcome-only policy, and the folder of its run inside the main one's."""

TITLES = {"prime": "PRIME", BASELINE: "outcome only"}

SOFT_OPTIONS = (
    "steps", "eval.*", "save_every", "keep_checkpoints", "sample_every", "watch.*", "profile", "max_*_steps",
    "watchdog*", "plots", "baseline", "mesh.*", "*.learning_rate", "rollout.engine", "rollout.server.*",
    "connection.*",
)  # fmt: skip
"""Options that a resumed run may change."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
      run_dir: where everything was written: report, metrics, samples, plots, checkpoints, models.
      summary: the contents of ``result.json``.
      policy: directory of the trained policy, as ``models.load_weights`` reads it.
      prm: directory of the online PRM, as ``prm.load`` reads it; None where none was trained.
      before, after: evaluation metrics of the main run.
    """

    run_dir: pathlib.Path
    summary: dict[str, Any]
    policy: pathlib.Path
    prm: pathlib.Path | None
    before: dict[str, float]
    after: dict[str, float]


def train(
    options: Options,
    run_dir: str | pathlib.Path,
    *,
    task: Task | None = None,
    source: RewardSource | None = None,
    reward: RewardFn | None = None,
    advantage: AdvantageFn | None = None,
    policy_loss: PolicyLoss | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> Result:
    """Trains as `options` say, with any part replaced by an object from outside.

    Args:
      options: of the run.
      run_dir: a new directory, or with `resume` the one of an interrupted run.
      task: problems and verdicts, instead of ``options.task``.
      source: of process rewards, instead of ``options.reward.source``.
      reward: ``inputs: RewardInputs -> [B, T]`` process rewards after shaping; starts from ``inputs.process``.
      advantage: ``(rewards [B, T], inputs) -> [B, T]``.
      policy_loss: ``(logp [B, T], old_logp, advantages, inputs) -> rl.Loss``; divergence and entropy terms of the
        options are added to it.
      callbacks: called with an `Event` after every step and evaluation of the main run.
      resume: continue from the newest good checkpoint; with the same options and objects the result has the same bits
        as if the run had never been interrupted.

    Returns:
      Where everything is, and what the evaluations found.

    Raises:
      UserError: options that cannot work, missing files, a run directory in use or of another configuration, a function
        that cannot be traced.
      InterruptedRun: a signal arrived and the state is saved.
      DivergedRun: non-finite updates or nothing to learn from, several steps in a row.
    """
    options = _with_source(options, source)
    check_options(options)
    if task is not None and options.prm.pretrain_task_options:
        raise UserError(
            "--prm.pretrain-task-options change --task.options, which task= replaces: leave one of them out"
        )
    begun = time.monotonic()
    overrides = _checked_overrides(Overrides(source, reward, advantage, policy_loss))
    callbacks = [*_named_callbacks(options), *callbacks]
    mesh = _mesh(options)
    task = _task_of_a_run_that_fits(options, task, mesh)
    if processes.count() > 1:
        processes.agree("the task's problems", task.fingerprint)
    main = "prime" if options.advantage.process_coef else BASELINE
    results: dict[str, Trained] = {}
    composed = _composed(options, load_start(options, task, mesh), mesh, overrides)
    with _open(run_dir, options, resume) as run, Interrupts() as interrupts, _console(run) as console:
        console.plan(_plan(composed, main))
        frontend = Frontend(console, interrupts, watchdog=options.watchdog, watchdog_exit=options.watchdog_exit)
        _introduce(composed, options, frontend)
        composed = _warmed(composed, overrides, run, frontend)
        probe = _probe(composed)
        results[main] = train_policy(
            composed, probe, run=run, frontend=dataclasses.replace(frontend, title=TITLES[main]), callbacks=callbacks
        )
        _save_models(run, options, composed.start, results[main])
        kept = run.path / "prm" if results[main].prm is not None else None
        if options.baseline and main != BASELINE:
            if interrupts.should_stop():
                raise InterruptedRun(f"stopped by {interrupts.signal_name} before the outcome-only run")
            results[main] = _without_arrays(results[main])
            results[BASELINE] = _train_baseline(composed, overrides, run, frontend, results[main].for_source)
        run.note(finished=True)
    seconds = time.monotonic() - begun
    summary = shared_files.by_first(lambda: write_report(run.path, options, results, seconds=seconds), what="report")
    summary = processes.broadcast_from_first(summary, name="the report")
    assert summary is not None
    return Result(run.path, summary, run.path / "policy", kept, results[main].before, results[main].after)


# ------------------------------------------------------------------------------------------- pieces


def _with_source(options: Options, source: Any) -> Options:
    """The options with the name of a source that was given as an object, for checks and for the recorded options."""
    if source is None:
        return options
    if not options.advantage.process_coef:
        raise UserError("source= is given, but --advantage.process-coef 0 (outcome-only training) uses none")
    kind = source if isinstance(source, type) else type(source)
    name = f"{kind.__module__}:{kind.__qualname__}"
    return dataclasses.replace(options, reward=dataclasses.replace(options.reward, source=name))


def _checked_overrides(given: Overrides) -> Overrides:
    """Functions from outside, checked when they are traced."""
    changes: dict[str, Any] = {}
    if given.reward is not None:
        check_signature(given.reward, ("inputs",), "reward function")
        changes["reward"] = checked_rewards(given.reward, f"the reward function {name_of(given.reward)}")
    if given.advantage is not None:
        check_signature(given.advantage, ("rewards", "inputs"), "advantage function")
        changes["advantage"] = checked_rewards(given.advantage, f"the advantage function {name_of(given.advantage)}")
    if given.policy_loss is not None:
        check_signature(given.policy_loss, ("logp", "old_logp", "advantages", "inputs"), "policy loss")
        changes["policy_loss"] = checked_loss(given.policy_loss, f"the policy loss {name_of(given.policy_loss)}")
    return dataclasses.replace(given, **changes)


def _from_outside(options: Options, overrides: Overrides) -> bool:
    named = (*options.reward.shaping, options.advantage.estimator, options.policy.loss, options.reward.source)
    given = (overrides.source, overrides.reward, overrides.advantage, overrides.policy_loss)
    return any(":" in name for name in named) or any(part is not None for part in given)


def _named_callbacks(options: Options) -> list[Callback]:
    found: list[Callback] = []
    for name in options.callbacks:
        empty: dict[str, Callback] = {}
        callback = resolve(name, empty, "callback", option="callbacks")
        check_signature(callback, ("event",), f"callback {name}")
        found.append(_naming_failures(name, callback))
    return found


def _naming_failures(name: str, callback: Callback) -> Callback:
    """The callback with errors that name it: the user gave it on the command line or in a file."""

    def call(event: Event) -> None:
        try:
            callback(event)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the callback {name} (--callbacks) failed at step {event.step} ({event.kind}): "
                f"{type(error).__name__}: {error}; correct it (--debug shows the traceback) and continue with --resume"
            ) from error

    return call


def _open(path: str | pathlib.Path, options: Options, resume: bool) -> RunDir:
    return open_run(
        path, options, resume=resume, soft=SOFT_OPTIONS, tensorboard=options.tensorboard, wandb=options.wandb
    )


def _console(run: RunDir) -> Console:
    """Progress on the standard output, of the first process alone."""
    return Console(str(run.path), file=None if run.writer else io.StringIO())


def _plan(composed: Composed, main: str) -> list[Phase]:
    options, phases, extra = composed.options, [], 0
    if options.sft.steps:
        phases.append(Phase("warm start", options.sft.steps))
    if is_warmed_up(options, composed.setup.source):
        phases.append(Phase("PRM warm-up", warm_up_steps(options)))
        extra = warm_up_rollouts(options)
    phases.append(Phase(TITLES[main], options.steps))
    if options.baseline and main != BASELINE:
        phases.append(Phase(TITLES[BASELINE], outcome_only(options, extra).steps, like=TITLES[main]))
    return phases


def _introduce(composed: Composed, options: Options, frontend: Frontend) -> None:
    """Says how answers are judged, with one worked example, and what to be aware of, before anything is trained."""
    for line in describe_task(composed.start.task).splitlines():
        frontend.say(line)
    config, mesh = composed.start.config, composed.mesh
    if mesh is not None and config.layers == "auto":
        reason = manual_layers.obstacle(config, mesh.abstract_mesh, _microbatch_rows(options))
        if reason:
            frontend.say(f"warning: --model.layers constraints, which repeats work on the devices, because {reason}")
    if options.rollout.top_k or options.rollout.top_p < 1:
        frontend.say(
            "warning: --rollout.top-k and --rollout.top-p sample from a truncated distribution, while the policy's "
            "log-probs are those of the whole vocabulary: --off-policy.weights correct for it, but tokens left "
            "out are never tried"
        )


def _composed(options: Options, start: Start, mesh: Mesh | None, overrides: Overrides) -> Composed:
    """The parts of the run around the loaded or fresh policy, checked before anything is written."""
    rollout = options.rollout
    sampler = Sampler(
        start.task, start.tokenizer, start.config, rollout.max_prompt_tokens, rollout.max_new_tokens,
        *sampling_parts(options, start, mesh),
    )  # fmt: skip
    initial = _fresh(options, start, mesh) if start.params is None else start.params
    composed = compose(options, start, initial, sampler, mesh, overrides)
    if is_warmed_up(options, composed.setup.source):
        warm_up_task(options, start)  # its options are checked before anything is written
    if _from_outside(options, overrides):
        check_traceable(composed)
    return composed


def _fresh(options: Options, start: Start, mesh: Mesh | None) -> Params:
    return fresh_params(start.config, jax.random.fold_in(jax.random.key(options.seed), INIT_STREAM), mesh=mesh)


def _warmed(composed: Composed, overrides: Overrides, run: RunDir, frontend: Frontend) -> Composed:
    """The same around the policy after its warm start, if it has one."""
    if composed.start.params is not None and not composed.options.sft.steps:
        return composed
    base = _initial_policy(composed, run, frontend)
    return compose(composed.options, composed.start, base, composed.sampler, composed.mesh, overrides)


def _without_arrays(trained: Trained) -> Trained:
    """What a report needs; the models are saved, and their memory is wanted."""
    return dataclasses.replace(trained, policy=None, prm=None)


def _train_baseline(composed: Composed, overrides: Overrides, run: RunDir, frontend: Frontend, extra: int) -> Trained:
    """The same policy from the same start with outcomes only, in a folder of its own."""
    plain, path = outcome_only(composed.options, extra), run.path / BASELINE
    begun_before = shared_files.is_file(path / "run.json") and shared_files.is_file(path / "config.yaml")
    if not begun_before:  # a kill may have left something while the directory was being made
        shared_files.by_first(lambda: shutil.rmtree(path, ignore_errors=True), what=f"empty {path}")
    overrides = dataclasses.replace(overrides, source=None, reward=None)
    start = dataclasses.replace(composed.start, prm_params=None)
    alone = compose(plain, start, composed.start.base, composed.sampler, composed.mesh, overrides)
    with _open(path, plain, begun_before) as inner:
        return train_policy(alone, None, run=inner, frontend=dataclasses.replace(frontend, title=TITLES[BASELINE]))


def outcome_only(options: Options, extra: int = 0) -> Options:
    """The same run without process rewards, and so without a PRM.

    Args:
      options: of the main run.
      extra: responses that the main run sampled for its source alone, in a warm-up or for values by rollouts; as many
        are sampled in additional steps.
    """
    per_step = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    given = options.advantage  # a shaping may have held the outcome
    advantage = dataclasses.replace(
        given, process_coef=0.0, outcome_coef=given.outcome_coef or 1.0, gate=False, consistent=1.0
    )
    return dataclasses.replace(options, advantage=advantage, baseline=False, steps=options.steps + extra // per_step)


def _mesh(options: Options) -> Mesh | None:
    sizes = options.mesh
    if sizes.one_device and processes.count() == 1:
        return None
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, expert=sizes.expert)
    check_spans_processes(mesh)
    rows = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    ways = rows_over(mesh)
    if rows % ways:
        raise UserError(
            f"{rows} responses per step (--rollout.prompts-per-step x --rollout.samples-per-prompt) cannot be split "
            f"over {ways} devices (--mesh.data x --mesh.fsdp x --mesh.expert): choose numbers that divide"
        )
    return mesh


def _microbatch_rows(options: Options) -> int:
    rows = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    return rows // (options.policy.minibatches * options.policy.microbatches)


def _task_of_a_run_that_fits(options: Options, task: Task | None, mesh: Mesh | None) -> Task:
    """The task; what cannot fit into memory is refused, before any weights are read."""
    task = load_task(options.task.name, **options.task.options) if task is None else task
    config, prm_config = planned_configs(options, task=task)
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    if mesh is not None:
        check_expert_axis(mesh, config.num_experts, config.architecture)
        manual_layers.applies(config, mesh.abstract_mesh, _microbatch_rows(options))
    check_host_memory(offloads(options), jax.local_devices()[0])
    check_fits(options, config, devices, prm_config=prm_config)
    return task


def _initial_policy(composed: Composed, run: RunDir, frontend: Frontend) -> Params:
    """The model after its warm start, kept in ``start/`` for a resumed run."""
    options, start, kept = composed.options, composed.start, run.path / "start"
    if shared_files.is_dir(kept):
        _, params = load_weights(kept, mesh=composed.mesh)
        return jax.tree.map(jax.numpy.asarray, params) if composed.mesh is None else params
    # A quantised base is made from the weights after the warm start.
    params = _fresh(options, start, composed.mesh) if is_quantized(start.base) else on_device(start.base)
    if options.sft.steps:
        params = warm_start(options, start, params, run=run, frontend=frontend, mesh=composed.mesh)
    save_weights(kept, start.config, params, tokenizer=start.tokenizer)
    if run.writer:
        shutil.rmtree(run.path / "phases" / "warm_start" / "checkpoints", ignore_errors=True)
    return params


def _probe(composed: Composed) -> PRMProbe | None:
    """Responses of the initial policy on held-out problems that the PRM is tested on, where step truth is known."""
    options, start, sampler = composed.options, composed.start, composed.sampler
    if not options.eval.prm_problems or not can_be_probed(composed.setup.source):
        return None
    problems = sampler.fitting(start.task.eval[: 2 * options.eval.prm_problems])
    if len(problems) < 2 or start.task.step_labels(problems[0], "") is None:
        return None
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), EVAL_STREAM), 1)
    responses = sample_in_batches(
        sampler, composed.sampling_params(start.base), problems, key, batch_size=options.eval.batch_size,
        temperature=options.rollout.temperature,
    )  # fmt: skip
    return PRMProbe.build(start.task, responses)


def _save_models(run: RunDir, options: Options, start: Start, trained: Trained) -> None:
    """The trained models as Hugging Face directories, adapters merged; the PRM says its kind, beta and reference."""
    of_policy = options.prm.reference == "policy"
    policy = merge(start.config, trained.policy)
    save_weights(run.path / "policy", start.config, policy, tokenizer=start.tokenizer, overwrite=True)
    if trained.prm is None:
        return
    prms.save_implicit(
        run.path / "prm", start.prm_config, merge(start.prm_config, trained.prm),
        start.config if of_policy else start.prm_config, trained.policy if of_policy else start.prm_base,
        start.tokenizer, beta=options.prm.beta, overwrite=True,
    )  # fmt: skip
