"""Quick evaluation on held-out solutions while a reward model trains."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax import rl
from prm_jax.prm import compiled
from prm_jax.prm.data import make_plan
from prm_jax.prm.prepare import Prepared
from prm_jax.prm.reward_model_options import Aggregate
from prm_jax.prm.rows import Batch, Row, collate
from prm_jax.prm.spec import Spec
from prm_jax.prm.step import TrainState
from prm_jax.prm.train_options import TrainPRMOptions
from prm_jax.runs import processes
from prm_jax.runs.learner import Params

Scorer = Callable[[TrainState, Params | None, Batch], tuple[jax.Array, rl.Loss]]


class HeldOut:
    """The evaluation of a run: ``state -> metrics``.

    Args:
      options: of the run.
      spec: of the model.
      data: with held-out rows, or without any.
      base: frozen parameters, see ``step.make_step``.
      scorer: from ``step.make_scorer``.
      place: puts a batch on the devices.
      ways: devices over which batches are split.
    """

    def __init__(
        self,
        options: TrainPRMOptions,
        spec: Spec,
        data: Prepared,
        base: Params | None,
        scorer: Scorer,
        *,
        place: Callable[[Batch], Batch],
        ways: int,
    ) -> None:
        self.options, self.spec, self.data, self.base, self.scorer = options, spec, data, base, scorer
        self.place, self.ways = place, ways

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Held-out loss, and what the scores of held-out solutions are worth; {} without held-out rows."""
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
            batch = self.place(collate(members, plan.shape, packed=plan.packed))
            scores, loss = self.scorer(state, self.base, batch)
            found.append((members, np.asarray(processes.to_host(scores)), processes.to_host(loss)))
        return found


def row_metrics(rows: Sequence[Row], scores: Sequence[np.ndarray], *, how: Aggregate) -> dict[str, float]:
    """Metrics of step scores; those that the rows do not allow are left out.

    Args:
      rows: scored solutions.
      scores: of each, [S].
      how: the aggregation of a solution's scores.

    Returns:
      step_auc (labelled steps through the first wrong one), first_error_f1 (threshold picked on every other problem,
      measured on the rest), outcome_auc, pairwise_accuracy (of right and wrong solutions to one problem).
    """
    width = max(len(row.reads) for row in rows)
    table, labels = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), width), np.float32)
    mask, known = np.zeros((len(rows), width), bool), np.zeros((len(rows), width), bool)
    for index, (row, own) in enumerate(zip(rows, scores, strict=True)):
        size = len(row.reads)
        table[index, :size], mask[index, :size] = own, True
        labels[index, :size], known[index, :size] = row.labels, row.label_mask
    found: dict[str, float] = {}
    right = labels > 0.5
    seen = known & (np.cumsum(known & ~right, axis=1) - (known & ~right) == 0)
    if (seen & right).any() and (seen & ~right).any():
        found["step_auc"] = float(compiled.roc_auc(table, right, seen))
    found |= _first_error(rows, table, mask, right, known)
    judged = np.asarray([np.isfinite(row.outcome) for row in rows])
    if judged.any():
        outcome = np.nan_to_num(np.asarray([row.outcome for row in rows], np.float32))
        response = np.asarray(compiled.aggregate_steps(table, mask, how=how))
        good = outcome > 0.5
        if (judged & good).any() and (judged & ~good).any():
            found["outcome_auc"] = float(compiled.roc_auc(response, good, judged))
        numbers = {group: number for number, group in enumerate(dict.fromkeys(row.group for row in rows))}
        groups = np.asarray([numbers[row.group] for row in rows], np.int32)
        found["pairwise_accuracy"] = float(
            compiled.pairwise_accuracy(response, outcome, groups, num_groups=len(numbers), mask=judged)
        )
    return found


def _first_error(
    rows: Sequence[Row], table: np.ndarray, mask: np.ndarray, right: np.ndarray, known: np.ndarray
) -> dict[str, float]:
    """First-error F1, where enough solutions are labelled through their first wrong step."""
    wrong = known & ~right
    first = np.where(wrong.any(1), wrong.argmax(1), -1)
    before = np.arange(table.shape[1])[None] < np.where(first < 0, table.shape[1], first)[:, None]
    usable = ~(mask & before & ~known).any(1)
    group = np.asarray([row.group for row in rows])
    half = {number: place % 2 == 0 for place, number in enumerate(dict.fromkeys(group[usable].tolist()))}
    picks = np.asarray([usable[i] and half[group[i]] for i in range(len(rows))])
    tests = usable & ~picks
    if not all((first[side] >= 0).any() and (first[side] < 0).any() for side in (picks, tests)):
        return {}
    threshold, _ = compiled.best_threshold(table[picks], mask[picks], first[picks])
    f1 = compiled.first_error_f1(compiled.first_error(table[tests], mask[tests], threshold=threshold), first[tests])
    return {"first_error_f1": float(f1["f1"])}
