"""``prm-jax train-prm``: a process reward model from step data, in one resumable run directory."""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prm_jax.data.step_data import StepRecord
from prm_jax.errors import MissingExtraError, UserError
from prm_jax.models import LoRAConfig, check_fits
from prm_jax.models.loading import load_model
from prm_jax.models.model_options import ModelOptions
from prm_jax.models.sharding import BATCH, make_mesh, rows_over, shard_params, shardings_for
from prm_jax.prm.data import Plan, batch_of, make_plan, stack
from prm_jax.prm.model import finished, save
from prm_jax.prm.prepare import Prepared, prepare
from prm_jax.prm.quick_eval import row_metrics
from prm_jax.prm.rows import Batch, Row, collate
from prm_jax.prm.spec import Spec
from prm_jax.prm.step import PRMLearner, TrainState, make_scorer, make_step
from prm_jax.prm.train_options import TrainPRMOptions, check_options, head_only
from prm_jax.runs.checkpoint import Checkpointer
from prm_jax.runs.console import Console
from prm_jax.runs.console import Row as ConsoleRow
from prm_jax.runs.integrity import fingerprint
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.learner import Params, make_optimizer
from prm_jax.runs.metrics_log import atomic_write
from prm_jax.runs.run_dir import RunDir, open_run
from prm_jax.runs.stopping import DivergedRun, InterruptedRun

SOFT_OPTIONS = ("eval_every", "save_every", "keep_checkpoints", "max_bad_steps", "plots")
"""What a resumed run may have otherwise than before."""

ROWS = (
    ConsoleRow("prm/loss", "loss", brief=True),
    ConsoleRow("prm/accuracy", "accuracy on the batch", percent=True, brief=True),
    ConsoleRow("prm_eval/loss", "held-out loss"),
    ConsoleRow("prm_eval/step_auc", "held-out step AUC", brief=True),
    ConsoleRow("prm_eval/first_error_f1", "held-out first-error F1", brief=True),
    ConsoleRow("prm_eval/pairwise_accuracy", "held-out pairwise accuracy", percent=True, brief=True),
    ConsoleRow("prm/grad_norm", "gradient norm"),
    ConsoleRow("time/step_seconds", "seconds a step"),
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
      InterruptedRun: a signal came and the state is saved.
      DivergedRun: non-finite gradients several steps in a row.
    """
    check_options(options, needs_path=data is None)
    begun = time.monotonic()
    mesh = _mesh(options)
    model = options.model
    config, base, tokenizer = load_model(ModelOptions(
        path=model.path, compute_dtype=model.compute_dtype, remat=model.remat, scan_unroll=model.scan_unroll,
        lora_rank=model.lora_rank, lora_alpha=model.lora_alpha,
    ))  # fmt: skip
    check_fits(tokenizer, config)
    prepared = prepare(options, tokenizer, limit=config.max_position_embeddings, records=data)
    spec = Spec(options.prm, config, objectives=prepared.objectives)
    with (
        open_run(
            run_dir, options, resume=resume, soft=SOFT_OPTIONS, tensorboard=options.tensorboard, wandb=options.wandb
        ) as run,
        Interrupts() as interrupts,
        Console(str(run.path), rows=ROWS) as console,
    ):
        for name, note in prepared.notes.items():
            console.message(f"{name}: {note}")
        loop = PRMLoop(options, spec, base, prepared, run, console, mesh=mesh)
        state = loop.train(interrupts)
        weights = loop.learner.weights(state.trainable, state.fixed, loop.base)
        prm = finished(spec, weights, tokenizer, options.text)
        save(run.path / "model", prm, overwrite=True)
        summary = {
            "kind": options.prm.kind,
            "steps": loop.plan.steps,
            "rows": len(prepared.rows),
            "data": prepared.notes,
            "before": loop.before,
            "after": loop.after,
            "seconds": round(time.monotonic() - begun, 1),
        }
        with atomic_write(run.path / "result.json") as file:
            json.dump(summary, file, indent=2)
            file.write("\n")
        run.note(finished=True)
        if options.plots:
            _draw(run.path, console)
    return summary


class PRMLoop:
    """The training loop of one run.

    Args:
      options: of the run.
      spec: of the model.
      base: the loaded parameters.
      data: rows.
      run: the run directory, open.
      console: says what happens.
      mesh: devices over which parameters and batches lie; None for one device.
    """

    def __init__(
        self,
        options: TrainPRMOptions,
        spec: Spec,
        base: Params,
        data: Prepared,
        run: RunDir,
        console: Console,
        *,
        mesh: Mesh | None = None,
    ) -> None:
        self.options, self.spec, self.data, self.run, self.console = options, spec, data, run, console
        self.mesh, self.ways = mesh, 1 if mesh is None else rows_over(mesh)
        base = jax.tree.map(jnp.asarray, base) if mesh is None else shard_params(base, mesh)
        train = options.train
        self.plan: Plan = make_plan(
            data.rows, batch_size=train.batch_size, microbatches=train.microbatches, epochs=train.epochs,
            seed=options.seed, whole_groups=spec.kind.whole_groups, packed=options.data.pack,
            objectives=data.objectives, ways=self.ways,
        )  # fmt: skip
        steps = self.plan.steps
        optimizer = make_optimizer(
            train.learning_rate, warmup_steps=round(train.warmup_fraction * steps), weight_decay=train.weight_decay,
            beta2=train.beta2, grad_clip=train.grad_clip, schedule=train.schedule, total_steps=steps,
        )  # fmt: skip
        lora = LoRAConfig(options.model.lora_rank, options.model.lora_alpha) if options.model.lora_rank else None
        frozen = head_only(options)
        self.learner = PRMLearner(spec, optimizer, lora, frozen)
        needs_base = frozen or lora is not None or spec.kind.compares
        self.start: Params | None = base
        self.base = base if needs_base else None
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._bad_steps = 0
        self._score = make_scorer(self.learner)
        self._digest = self._fingerprint()

    def train(self, interrupts: Interrupts) -> TrainState:
        """Runs to the last step; see ``train``."""
        options, steps = self.options, self.plan.steps
        key = jax.random.key(options.seed)
        with Checkpointer(self.run.checkpoints, max_to_keep=options.keep_checkpoints) as checkpoints:
            shape, done = jax.eval_shape(self.learner.init, self.start, key), 0
            shardings = None if self.mesh is None else shardings_for(shape, self.mesh)
            step_fn = make_step(self.learner, microbatches=options.train.microbatches, shardings=shardings)
            restored = checkpoints.restore(_on_mesh(shape, shardings)) if self.run.resumed else None
            if restored is not None:
                state, done = restored.state, restored.step
                self._take_up(restored.metadata)
                self.run.rewind(done)
                self.console.phase("reward model", steps, start=done)
                self.console.message(f"resumed at step {done}")
            else:
                if self.run.resumed:
                    self.run.rewind(-1)
                self.console.phase("reward model", steps)
                state = self._place(self._fit_fixed(self.learner.init(self.start, key)))
                self.start = None  # its copy trains; what stays frozen is the base
                self.before = self.after = self._evaluate(state)
                self._report(0, self.before)
                self._save(checkpoints, state, 0)
            while done < steps:
                begun = time.monotonic()
                batch, other = self._batch(done)
                state, found = step_fn(state, self.base, batch, other)
                metrics = {name: float(value) for name, value in jax.device_get(found).items()}
                metrics["time/step_seconds"] = time.monotonic() - begun
                self._bad_steps = self._bad_steps + 1 if metrics["prm/skipped"] else 0
                done += 1
                last = done == steps
                if last or (options.eval_every and done % options.eval_every == 0):
                    self.after = self._evaluate(state)
                    metrics |= self.after
                self._report(done, metrics)
                stop, failed = interrupts.should_stop(), self._bad_steps >= options.max_bad_steps
                if stop or failed or last or done % options.save_every == 0:
                    self._save(checkpoints, state, done)
                if failed:
                    checkpoints.wait()
                    raise DivergedRun(
                        f"{self._bad_steps} steps in a row had a non-finite gradient and were skipped: lower "
                        "--train.learning-rate or raise --max-bad-steps"
                    )
                if stop and not last:
                    checkpoints.wait()
                    raise InterruptedRun(f"stopped by {interrupts.signal_name} after step {done}")
        return state

    def _place(self, tree: Any) -> Any:
        """Parameters, or a state that holds them, on the mesh."""
        return tree if self.mesh is None else shard_params(tree, self.mesh)

    def _split(self, batch: Batch, *, axis: int = 0) -> Batch:
        """A batch on the mesh, `axis` of every leaf split."""
        if self.mesh is None:
            return batch
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(*([None] * axis), BATCH)))

    def _batch(self, step: int) -> tuple[Batch, Batch | None]:
        pieces = self.options.train.microbatches
        batch = batch_of(self.plan, self.data.rows, step, microbatches=pieces)
        others = [
            self.spec.kind.extra_batch([self.data.rows[i] for i in piece], self.plan.shape)
            for piece in self.plan.microbatches(step)
        ]
        extra = [other for other in others if other is not None]
        if not extra:
            return self._split(batch, axis=1), None
        empty = self.spec.kind.extra_batch([], self.plan.shape)
        extra += [empty] * (pieces - len(extra)) if empty is not None else []
        return self._split(batch, axis=1), self._split(stack(extra), axis=1)

    def _fit_fixed(self, state: TrainState) -> TrainState:
        """The arrays that a kind computes from the training data before gradients are taken."""
        weights = self.learner.weights(state.trainable, state.fixed, self.base)
        batches = (
            (collate([self.data.rows[i] for i in piece], self.plan.shape, packed=self.plan.packed), len(piece))
            for step in range(len(self.plan.epochs[0]))
            for piece in self.plan.microbatches(step)
        )
        return dataclasses.replace(state, fixed=self.spec.kind.fit_fixed(self.spec, weights, batches))

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Held-out loss, and what the scores of held-out solutions are worth."""
        found: dict[str, float] = {}
        if self.data.eval_loss_rows:
            losses = [loss for _, _, loss in self._scored(state, self.data.eval_loss_rows, self.spec.kind.whole_groups)]
            total, weight = (sum(float(getattr(loss, name)) for loss in losses) for name in ("total", "weight"))
            found["prm_eval/loss"] = total / max(weight, 1.0)
        if self.data.eval_rows:
            parts = [(rows, scores) for rows, scores, _ in self._scored(state, self.data.eval_rows, False)]
            rows = [row for members, _ in parts for row in members]
            scores = [table[place, : len(row.reads)] for members, table in parts for place, row in enumerate(members)]
            measured = row_metrics(rows, scores, how=self.spec.kind.how)
            found |= {f"prm_eval/{name}": value for name, value in measured.items()}
        return found

    def _scored(
        self, state: TrainState, rows: Sequence[Row], whole_groups: bool
    ) -> list[tuple[list[Row], np.ndarray, Any]]:
        """For every batch in order: its rows, their step scores, the loss (of pairs, only with whole groups)."""
        plan = make_plan(
            rows, batch_size=self.options.train.batch_size, whole_groups=whole_groups,
            packed=self.options.data.pack, shuffle=False, objectives=self.data.objectives, ways=self.ways,
        )  # fmt: skip
        found = []
        for step in range(plan.steps):
            members = [rows[i] for i in plan.microbatches(step)[0]]
            batch = self._split(collate(members, plan.shape, packed=plan.packed))
            scores, loss = self._score(state, self.base, batch)
            found.append((members, np.asarray(scores), jax.device_get(loss)))
        return found

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        if step:
            self.run.claim()
        self.console.update(step, self.run.log(step, metrics))

    def _save(self, checkpoints: Checkpointer, state: TrainState, done: int) -> None:
        metadata = {
            "digest": self._digest, "before": self.before, "after": self.after, "bad_steps": self._bad_steps,
        }  # fmt: skip
        self.run.sync()
        checkpoints.save(done, state, metadata)

    def _take_up(self, metadata: dict[str, Any]) -> None:
        if metadata["digest"] != self._digest:
            raise UserError(
                "the data or the weights that this run starts from have changed since its checkpoint was written "
                "(--data.path or --model.path): put the old ones back, or start a new run"
            )
        self.before, self.after, self._bad_steps = metadata["before"], metadata["after"], metadata["bad_steps"]

    def _fingerprint(self) -> str:
        """Of the start and of the rows."""
        digest = hashlib.blake2b(json.dumps(fingerprint(self.start), sort_keys=True).encode(), digest_size=16)
        for row in self.data.rows:
            for array in (row.tokens, row.step_ids, row.labels, row.label_mask):
                digest.update(array.tobytes())
            digest.update(repr((row.outcome, row.group, sorted(row.objectives.items()))).encode())
        return digest.hexdigest()


def _mesh(options: TrainPRMOptions) -> Mesh | None:
    sizes, train = options.mesh, options.train
    if (sizes.data, sizes.fsdp, sizes.tensor) == (1, 1, 1):
        return None
    if jax.process_count() > 1:
        raise UserError(f"--mesh: a reward model trains in one process with all its devices; {jax.process_count()} run")
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor)
    piece, ways = train.batch_size // train.microbatches, rows_over(mesh)
    if piece % ways:
        raise UserError(
            f"{piece} solutions (--train.batch-size over --train.microbatches) cannot be split over {ways} devices "
            "(--mesh.data x --mesh.fsdp): choose numbers that divide"
        )
    return mesh


def _on_mesh(shape: TrainState, shardings: TrainState | None) -> TrainState:
    """Shapes with their places, so that what a checkpoint holds is the only state in memory."""
    if shardings is None:
        return shape
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)


def _draw(path: pathlib.Path, console: Console) -> None:
    from prm_jax.runs.plots import plot_report

    try:
        plot_report({"reward model": path}, path / "plots")
    except MissingExtraError as error:
        console.message(f"no plots: {error}")
