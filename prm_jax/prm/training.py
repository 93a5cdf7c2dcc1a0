"""Training of a process reward model from step data, in one resumable run directory."""

import dataclasses
import hashlib
import io
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prm_jax.data.pipeline import BatchStream
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import MissingExtraError, UserError
from prm_jax.models import LoRAConfig, check_fits
from prm_jax.models.loading import load_model
from prm_jax.models.model_options import ModelOptions
from prm_jax.models.qtensor import is_quantized
from prm_jax.models.quantization_options import bits_of
from prm_jax.models.sharding import (
    batch_sharding,
    check_expert_axis,
    check_spans_processes,
    make_mesh,
    placed_shapes,
    rows_over,
    shard_params,
)
from prm_jax.prm.data import Plan, batch_of, make_plan, stack
from prm_jax.prm.held_out import HeldOut
from prm_jax.prm.model import finished, save
from prm_jax.prm.prepare import Prepared, prepare
from prm_jax.prm.rows import Batch, collate
from prm_jax.prm.spec import Spec
from prm_jax.prm.step import PRMLearner, TrainState, make_scorer, make_step
from prm_jax.prm.train_options import TrainPRMOptions, check_options, head_only
from prm_jax.runs import processes, shared_files
from prm_jax.runs.console import Console
from prm_jax.runs.console import Row as ConsoleRow
from prm_jax.runs.expert_balance import check_balanced
from prm_jax.runs.fitting import FitOptions, Fitted, Frontend, fit, load_best
from prm_jax.runs.host_memory import check_host_memory
from prm_jax.runs.integrity import fingerprint
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.learner import Params, make_optimizer
from prm_jax.runs.metrics_log import atomic_write
from prm_jax.runs.run_dir import RunDir, open_run

SOFT_OPTIONS = (
    "eval_every", "save_every", "keep_checkpoints", "max_bad_steps", "max_steps", "watchdog*", "patience", "plots",
    "mesh.*", "train.learning_rate",
)  # fmt: skip
"""Options that may be changed when a run is resumed."""

ROWS = (
    ConsoleRow("prm/loss", "loss", brief=True),
    ConsoleRow("prm/accuracy", "accuracy on the batch", percent=True, brief=True),
    ConsoleRow("prm_eval/loss", "held-out loss"),
    ConsoleRow("prm_eval/step_auc", "held-out step AUC", brief=True),
    ConsoleRow("prm_eval/first_error_f1", "held-out first-error F1", brief=True),
    ConsoleRow("prm_eval/pairwise_accuracy", "held-out pairwise accuracy", percent=True, brief=True),
    ConsoleRow("prm/grad_norm", "gradient norm"),
    ConsoleRow("time/step_seconds", "seconds per step"),
)


def train(
    options: TrainPRMOptions,
    run_dir: str | pathlib.Path,
    *,
    data: Sequence[StepRecord] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains a reward model and leaves everything in `run_dir`; the model itself in its folder ``model``.

    Args:
      options: of the run.
      run_dir: a new directory, or with `resume` the one of an interrupted run.
      data: what to learn from instead of the file ``options.data.path``; ``options.data`` divides it all the same.
      resume: continue from the newest good checkpoint; the result has the same bits as if the run had never stopped.

    Returns:
      The summary that is also written to ``result.json``.

    Raises:
      UserError: options that cannot work, data that cannot be used or teaches nothing, a run directory in use.
      InterruptedRun: a signal arrived and the state is saved.
      DivergedRun: non-finite updates several steps in a row.
    """
    check_options(options, needs_path=data is None)
    begun = time.monotonic()
    mesh = _mesh(options)
    offloads = {"--train.offload": options.train.moments} if options.train.offload else {}
    check_host_memory(offloads, jax.local_devices()[0])
    model = options.model
    config, base, tokenizer = load_model(ModelOptions(
        path=model.path, compute_dtype=model.compute_dtype, remat=model.remat, scan_unroll=model.scan_unroll,
        layers=model.layers, lora_rank=model.lora_rank, lora_alpha=model.lora_alpha,
        quantize=model.quantize, quantization=model.quantization,
    ), mesh=mesh)  # fmt: skip
    check_fits(tokenizer, config)
    options.prm.check_tokenizer(tokenizer)
    check_expert_axis(mesh, config.num_experts, config.architecture)
    check_balanced("--train.balance-coef", options.train.balance_coef, config)
    if is_quantized(base) and not (model.lora_rank or head_only(options)):
        raise UserError(
            f"{model.path} holds quantised weights, and without adapters all of them would train: give "
            "--model.lora-rank, or --train.trains head"
        )
    prepared = prepare(options, tokenizer, limit=config.context, records=data)
    job = _Job(options, Spec(options.prm, config, objectives=prepared.objectives), base, prepared, mesh)
    del base
    with (
        open_run(
            run_dir, options, resume=resume, soft=SOFT_OPTIONS, tensorboard=options.tensorboard, wandb=options.wandb
        ) as run,
        Interrupts() as interrupts,
        Console(str(run.path), rows=ROWS, file=None if run.writer else io.StringIO()) as console,
    ):
        for name, note in prepared.notes.items():
            console.message(f"{name}: {note}")
        fitted = job.run(run, console, interrupts)
        state = job.best_state(run) if options.best else fitted.state
        weights = job.learner.weights(state.trainable, state.fixed, job.base)
        model_found = finished(job.spec, weights, tokenizer, options.prm.layout(options.text))
        save(run.path / "model", model_found, overwrite=True)
        summary = _summary(options, prepared, fitted) | {"seconds": round(time.monotonic() - begun, 1)}

        def write() -> None:
            with atomic_write(run.path / "result.json") as file:
                json.dump(summary, file, indent=2)
                file.write("\n")
            run.note(finished=True)
            if options.plots:
                _draw(run.path, console)

        shared_files.by_first(write, what=f"write {run.path / 'result.json'}")
    return summary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepBatch:
    """What one step learns from.

    Attributes:
      arrays: every leaf with a leading axis of microbatches.
      extra: what the loss's constant is computed from; None where it has none.
    """

    arrays: Batch
    extra: Batch | None


class _Job:
    """The start, the step and the batches of one run."""

    def __init__(
        self, options: TrainPRMOptions, spec: Spec, base: Params, data: Prepared, mesh: Mesh | None
    ) -> None:
        self.options, self.spec, self.data, self.mesh = options, spec, data, mesh
        self.ways = 1 if mesh is None else rows_over(mesh)
        base = jax.tree.map(jnp.asarray, base) if mesh is None else shard_params(base, mesh)
        train = options.train
        self.plan: Plan = make_plan(
            data.rows, batch_size=train.batch_size, microbatches=train.microbatches, epochs=train.epochs,
            seed=options.seed, whole_groups=spec.kind.whole_groups, packed=options.data.pack,
            objectives=data.objectives, ways=self.ways,
        )  # fmt: skip
        self.steps = min(self.plan.steps, options.max_steps or self.plan.steps)
        optimizer = make_optimizer(
            train.learning_rate, warmup_steps=round(train.warmup_fraction * self.steps),
            weight_decay=train.weight_decay, beta2=train.beta2, grad_clip=train.grad_clip, schedule=train.schedule,
            total_steps=self.steps, moments=train.moments,
        )  # fmt: skip
        lora = LoRAConfig(options.model.lora_rank, options.model.lora_alpha) if options.model.lora_rank else None
        self.learner = PRMLearner(
            spec, optimizer, lora, head_only(options), train.offload, bits_of(train.rounding)
        )  # fmt: skip
        needs_base = head_only(options) or lora is not None or spec.kind.compares
        self.start: Params | None = base
        self.base = base if needs_base else None
        self.identity = self._fingerprint(base)
        self.shape = jax.eval_shape(self.learner.init, base, jax.random.key(0))

    def run(self, run: RunDir, console: Console, interrupts: Interrupts) -> Fitted:
        """Trains to the last step."""
        options = self.options
        shardings = self.learner.shardings(self.shape, self.mesh)
        compiled = make_step(
            self.learner, microbatches=options.train.microbatches,
            shardings=None if self.mesh is None else shardings, balance_coef=options.train.balance_coef,
        )  # fmt: skip

        def step(state: TrainState, batch: StepBatch) -> tuple[TrainState, dict[str, jax.Array]]:
            return compiled(state, self.base, batch.arrays, batch.extra)

        evaluate = HeldOut(
            options, self.spec, self.data, self.base, make_scorer(self.learner), place=self._split, ways=self.ways
        )
        return fit(
            self._first_state, step, BatchStream(self._batch, self.steps), run=run, evaluate=evaluate,
            callbacks=(self._let_go,),
            options=FitOptions(
                steps=self.steps, save_every=options.save_every, eval_every=options.eval_every,
                keep_checkpoints=options.keep_checkpoints, max_bad_steps=options.max_bad_steps,
                best=options.best and f"prm_eval/{options.best}",
                best_is="min" if options.best == "loss" else "max", patience=options.patience,
            ),
            frontend=Frontend(
                console, interrupts, title="reward model", watchdog=options.watchdog,
                watchdog_exit=options.watchdog_exit,
                hint="Lower --train.learning-rate, or raise --max-bad-steps",
            ),
            identity=self.identity, target=placed_shapes(self.shape, shardings),
        )  # fmt: skip

    def best_state(self, run: RunDir) -> TrainState:
        """The state with the best held-out metric."""
        shardings = self.learner.shardings(self.shape, self.mesh)
        state: TrainState = load_best(run, placed_shapes(self.shape, shardings))
        return state

    def _first_state(self) -> TrainState:
        state = self.learner.init(self.start, jax.random.key(self.options.seed))
        weights = self.learner.weights(state.trainable, state.fixed, self.base)
        rows, plan = self.data.rows, self.plan
        batches = (
            (collate([rows[i] for i in piece], plan.shape, packed=plan.packed), len(piece))
            for step in range(len(plan.epochs[0]))
            for piece in plan.microbatches(step)
        )
        state = dataclasses.replace(state, fixed=self.spec.kind.fit_fixed(self.spec, weights, batches))
        shardings = self.learner.shardings(self.shape, self.mesh)
        return state if shardings is None else processes.to_global(state, shardings)

    def _let_go(self, event: Any) -> None:
        """What trains is a copy of the start; what stays frozen is the base."""
        if event.kind == "start":
            self.start = None

    def _batch(self, step: int) -> StepBatch:
        pieces, rows = self.options.train.microbatches, self.data.rows
        batch = self._split(batch_of(self.plan, rows, step, microbatches=pieces), axis=1)
        members = [[rows[i] for i in piece] for piece in self.plan.microbatches(step)]
        members += [[]] * (pieces - len(members))
        extra = [self.spec.kind.extra_batch(piece, self.plan.shape) for piece in members]
        present = [one for one in extra if one is not None]
        return StepBatch(batch, self._split(stack(present), axis=1) if present else None)

    def _split(self, batch: Batch, *, axis: int = 0) -> Batch:
        """A batch on the mesh, `axis` of every leaf split."""
        if self.mesh is None:
            return batch
        return processes.to_global(batch, batch_sharding(self.mesh, axis))

    def _fingerprint(self, base: Params) -> str:
        """Of the start and of the rows."""
        digest = hashlib.blake2b(json.dumps(fingerprint(base), sort_keys=True).encode(), digest_size=16)
        for row in self.data.rows:
            for array in (row.tokens, row.step_ids, row.labels, row.label_mask):
                digest.update(array.tobytes())
            digest.update(repr((row.outcome, row.group, sorted(row.objectives.items()))).encode())
        return digest.hexdigest()


def _summary(options: TrainPRMOptions, data: Prepared, fitted: Fitted) -> dict[str, Any]:
    best = {"best": {"step": fitted.best_step, options.best: fitted.best_value}} if options.best else {}
    return {
        "kind": options.prm.kind,
        "steps": fitted.steps,
        "rows": len(data.rows),
        "data": data.notes,
        "before": fitted.before,
        "after": fitted.after,
        **best,
    }


def _mesh(options: TrainPRMOptions) -> Mesh | None:
    sizes, train = options.mesh, options.train
    if sizes.one_device and processes.count() == 1:
        return None
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, expert=sizes.expert)
    check_spans_processes(mesh)
    piece, ways = train.batch_size // train.microbatches, rows_over(mesh)
    if piece % ways:
        raise UserError(
            f"{piece} solutions (--train.batch-size over --train.microbatches) cannot be split over {ways} devices "
            "(--mesh.data x --mesh.fsdp x --mesh.expert): choose numbers that divide"
        )
    return mesh


def _draw(path: pathlib.Path, console: Console) -> None:
    from prm_jax.runs.plots import plot_report

    try:
        plot_report({"reward model": path}, path / "plots")
    except MissingExtraError as error:
        console.message(f"no plots: {error}")
