"""`prm-jax train`: warm start, PRIME, the outcome-only baseline, and the report, in one resumable run directory."""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prm_jax.errors import UserError
from prm_jax.models import load_weights, merge, save_weights
from prm_jax.models.loading import fresh_params
from prm_jax.models.sharding import make_mesh
from prm_jax.prime.arm import Arm, ArmResult
from prm_jax.prime.checks import check_options
from prm_jax.prime.collect import EVAL_STREAM, INIT_STREAM, Sampler
from prm_jax.prime.evaluate import PRMProbe, sample_in_batches
from prm_jax.prime.options import SFTOptions, TrainOptions
from prm_jax.prime.report import write_report
from prm_jax.prime.start import Start, load_start, uses_prm
from prm_jax.prime.warm_start import train_sft
from prm_jax.runs.console import Console
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.learner import Params
from prm_jax.runs.run_dir import RunDir, open_run
from prm_jax.runs.stopping import DivergedRun, InterruptedRun

BASELINE = "outcome_only"
"""The outcome-only arm, and the folder of its run inside the main one's."""

TITLES = {"prime": "PRIME", BASELINE: "outcome only"}

SOFT_OPTIONS = ("steps", "eval.*", "save_every", "keep_checkpoints", "sample_every", "max_*_steps", "plots", "baseline")
"""What a resumed run may have otherwise than before."""


def train(options: TrainOptions, run_dir: str | pathlib.Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains as `options` say and leaves everything in `run_dir`.

    Args:
      options: of the run.
      run_dir: a new directory, or with `resume` the one of an interrupted run.
      resume: go on from the newest good checkpoint; with the same options the result has the same bits as if the run
        had never stopped.

    Returns:
      The summary that is also written to ``result.json``.

    Raises:
      UserError: options that cannot work, missing files, a run directory in use or of another configuration.
      InterruptedRun: a signal came and the state is saved.
      DivergedRun: non-finite gradients or nothing to learn from, several steps in a row.
    """
    check_options(options)
    begun = time.monotonic()
    mesh = _mesh(options)
    start = load_start(options)
    main = "prime" if options.advantage.process_coef else BASELINE
    results = {}
    with _open(run_dir, options, resume) as run, Interrupts() as interrupts, Console(str(run.path)) as console:
        for note in getattr(start.task, "notes", ()):
            console.message(note)
        base = _initial_policy(options, start, run, console, interrupts)
        rollout = options.rollout
        sampler = Sampler(start.task, start.tokenizer, start.config, rollout.max_prompt_tokens, rollout.max_new_tokens)
        probe = _probe(options, start, base, sampler)
        results[main] = _train_arm(main, options, start, base, sampler, probe, run, console, interrupts, mesh)
        _save_models(run, start, results[main])
        if options.baseline and main != BASELINE:
            if interrupts.should_stop():
                raise InterruptedRun(f"stopped by {interrupts.signal_name} before the outcome-only run")
            plain, path = _outcome_only(options), run.path / BASELINE
            begun_before = (path / "run.json").is_file() and (path / "config.yaml").is_file()
            if not begun_before:
                shutil.rmtree(path, ignore_errors=True)  # what a kill left of its making
            with _open(path, plain, begun_before) as inner:
                results[BASELINE] = _train_arm(
                    BASELINE, plain, start, base, sampler, None, inner, console, interrupts, mesh
                )
        run.note(finished=True)
    return write_report(run.path, options, results, seconds=time.monotonic() - begun)


def _open(path: str | pathlib.Path, options: TrainOptions, resume: bool) -> RunDir:
    return open_run(
        path, options, resume=resume, soft=SOFT_OPTIONS, tensorboard=options.tensorboard, wandb=options.wandb
    )


def _train_arm(
    name: str,
    options: TrainOptions,
    start: Start,
    base: Params,
    sampler: Sampler,
    probe: PRMProbe | None,
    run: RunDir,
    console: Console,
    interrupts: Interrupts,
    mesh: Mesh | None,
) -> ArmResult:
    def report(step: int, metrics: dict[str, float]) -> None:
        if step:
            run.claim()
        console.update(step, run.log(step, metrics))

    def on_start(done: int) -> None:
        console.phase(TITLES[name], options.steps, start=done)

    arm = Arm(
        options, start, base, sampler, probe, run, mesh=mesh, on_start=on_start, report=report, say=console.message
    )
    return arm.train(interrupts, resume=run.resumed)


def _mesh(options: TrainOptions) -> Mesh | None:
    sizes = options.mesh
    if (sizes.data, sizes.fsdp, sizes.tensor) == (1, 1, 1):
        return None
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor)
    rows = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise UserError(
            f"{rows} responses a step (--rollout.prompts-per-step x --rollout.samples-per-prompt) cannot be split over "
            f"{ways} devices (--mesh.data x --mesh.fsdp): choose numbers that divide"
        )
    return mesh


def _outcome_only(options: TrainOptions) -> TrainOptions:
    """The same run without process rewards, and so without a PRM.

    It gets as many rollouts in all: those of the PRM's warm-up as steps of its own.
    """
    per_step = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    advantage = dataclasses.replace(options.advantage, process_coef=0.0, gate=False)
    steps = options.steps + options.prm.pretrain_rollouts // per_step
    return dataclasses.replace(options, advantage=advantage, baseline=False, steps=steps)


def _initial_policy(
    options: TrainOptions, start: Start, run: RunDir, console: Console, interrupts: Interrupts
) -> Params:
    """The loaded weights, or a fresh model after its warm start, kept in ``start/`` for a resumed run."""
    if start.params is not None:
        return start.params
    kept = run.path / "start"
    if kept.is_dir():
        _, params = load_weights(kept)
        return jax.tree.map(jax.numpy.asarray, params)
    params = fresh_params(start.config, jax.random.fold_in(jax.random.key(options.seed), INIT_STREAM))
    if options.sft.steps:
        batches = demonstration_batches(options, start)

        console.phase("warm start", options.sft.steps)

        def on_step(step: int, metrics: dict[str, float]) -> None:
            run.claim()
            console.update(step, metrics)
            if interrupts.should_stop():
                raise InterruptedRun(
                    f"stopped by {interrupts.signal_name} in the warm start, which --resume begins anew"
                )
            if metrics["sft/skipped"]:
                raise DivergedRun("the warm start has a gradient that is not finite; lower --sft.learning-rate")

        params = train_sft(start.config, params, batches, options.sft, on_step=on_step)
    save_weights(kept, start.config, params, tokenizer=start.tokenizer)
    return params


def demonstration_batches(options: TrainOptions, start: Start) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """``step -> (tokens [B, T], mask [B, T])`` of the task's demonstrations, a pure function of seed and step."""
    demonstrations = getattr(start.task, "demonstrations", None)
    if demonstrations is None:
        raise UserError(
            f"the task {options.task.name!r} writes no demonstrations to warm a model up with: set --sft.steps 0 "
            "and name a pretrained model with --model.path"
        )
    sft: SFTOptions = options.sft
    width = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    tokenizer = start.tokenizer

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((options.seed, 1_000_003, step))
        tokens = np.full((sft.batch_size, width), tokenizer.pad_id or 0, np.int32)
        mask = np.zeros((sft.batch_size, width), bool)
        for row, (prompt, response) in enumerate(demonstrations(rng, sft.batch_size)):
            before = tokenizer.encode(prompt, add_special=True)
            after = [*tokenizer.encode(response), tokenizer.eos_id]
            if len(before) + len(after) > width:
                raise UserError(
                    f"a demonstration has {len(before)} + {len(after)} tokens, more than --rollout.max-prompt-tokens + "
                    f"--rollout.max-new-tokens = {width}; raise them"
                )
            tokens[row, : len(before) + len(after)] = [*before, *after]
            mask[row, len(before) : len(before) + len(after)] = True
        return tokens, mask

    return batch


def _probe(options: TrainOptions, start: Start, base: Params, sampler: Sampler) -> PRMProbe | None:
    """Responses of the initial policy on held-out problems that the PRM is tested on, where step truth is known."""
    count = options.eval.prm_problems
    problems = sampler.fitting(start.task.eval[: 2 * count])
    if (
        not count
        or not problems
        or not uses_prm(options)
        or start.task.step_labels(problems[0], "") is None
    ):
        return None
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), EVAL_STREAM), 1)
    responses = sample_in_batches(
        sampler, base, problems, key, batch_size=options.eval.batch_size, temperature=options.rollout.temperature
    )
    return PRMProbe.build(start.task, responses)


def _save_models(run: RunDir, start: Start, result: ArmResult) -> None:
    """The trained models as Hugging Face directories, adapters folded in."""
    save_weights(
        run.path / "policy", start.config, merge(start.config, result.policy), tokenizer=start.tokenizer, overwrite=True
    )
    if result.prm is not None:
        merged = merge(start.prm_config, result.prm)
        save_weights(run.path / "prm", start.prm_config, merged, tokenizer=start.tokenizer, overwrite=True)
