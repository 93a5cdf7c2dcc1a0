"""Labels from search trees over a policy's steps: AlphaMath's and ReST-MCTS*'s values, shares of answers, pairs."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prm_jax import rl, search
from prm_jax.data.step_data import StepRecord
from prm_jax.prm.labelling.tree_options import TREE_LABELS, StepValues, TreeOptions
from prm_jax.prm.prefixes import as_record
from prm_jax.rollouts.policy import TaskPolicy
from prm_jax.rollouts.values import AnswerValues
from prm_jax.search import language_model as lm
from prm_jax.search.language_model import Partial

_PUBLISHED_MARGINS = {"top_bottom": 0.5}


def tree_records(
    policy: TaskPolicy, told: Mapping[str, Any], *, labels: str, rollouts: int, options: TreeOptions,
    values: StepValues | None = None,
) -> tuple[list[StepRecord], int]:  # fmt: skip
    """Searches the policy's current problems and makes records of the trees.

    Args:
      policy: with a current chunk of problems.
      told: provenance that all records share.
      labels: one of `TREE_LABELS` or of `PAIRS`.
      rollouts: of each unfinished prefix, where the options say "rollouts".
      options: of the search.
      values: probabilities of unfinished prefixes; None for rollouts or the middle of the range, by the options.

    Returns:
      (records, proposals and rollouts made).
    """
    trees = _search(policy, options, rollouts if options.scorer == "rollouts" else 0, values)
    make = _solutions if labels in TREE_LABELS else _pairs
    return list(make(policy, told, labels, options, trees)), trees.calls


def edit_distance(a: str, b: str) -> int:
    """Minimum number of characters to insert, delete or replace to turn one text into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


class _Trees(NamedTuple):
    tree: search.Tree
    nodes: list[dict[int, Partial]]  # for each question: slot -> prefix
    correct: np.ndarray  # [B, N] bool: nodes with a correct answer
    answers: np.ndarray  # [B, N] bool: nodes with an answer that could be checked
    low: float  # value of a wrong answer; that of a correct one is 1
    calls: int


def _search(policy: TaskPolicy, options: TreeOptions, rollouts: int, step_values: StepValues | None) -> _Trees:
    values = _Values(policy, options, rollouts, step_values)
    method = functools.partial(search.alphamath, c=1.5, depth_value=values.low)
    if options.rule != "alphamath":
        other = {"rest_mcts": search.rest_mcts, "med_s3": search.med_s3}[options.rule]
        method = functools.partial(other, depth_value=values.low)
    found, tree, nodes = lm.tree_search(
        policy.propose, values, len(policy.problems), simulations=options.simulations, width=options.width,
        max_steps=options.max_steps, method=method,
    )  # fmt: skip
    answers, correct = np.zeros((2, *tree.parent.shape), bool)
    for b, prefixes in enumerate(nodes):
        for slot, partial in prefixes.items():
            verdict = values.verdicts.get((b, partial.steps))
            answers[b, slot], correct[b, slot] = verdict is not None, bool(verdict)
    return _Trees(tree, nodes, correct, answers, values.low, int(found.proposals.sum()) + values.roller.calls)


class _Values(AnswerValues):
    """Values of prefixes for the search, from `low` to 1."""

    def __init__(
        self, policy: TaskPolicy, options: TreeOptions, rollouts: int, step_values: StepValues | None
    ) -> None:
        # The requests below belong to the tree's proposals, one per slot.
        super().__init__(policy, rollouts, 1 + options.simulations * options.width)
        self.step_values, self.low = step_values, -1.0 if options.rule == "alphamath" else 0.0

    def __call__(self, partials: Sequence[Partial]) -> list[float]:
        return [self.low + (1.0 - self.low) * chance for chance in super().__call__(partials)]

    def unfinished(self, partials: Sequence[Partial]) -> list[float]:
        if self.step_values is None or not partials:
            return super().unfinished(partials)
        return self.step_values(self.policy, partials)


def _solutions(
    policy: TaskPolicy, told: Mapping[str, Any], how: str, options: TreeOptions, trees: _Trees
) -> Iterator[StepRecord]:
    """A record for every answer: each step with the label of its node, so that shared steps are repeated."""
    tree = trees.tree
    kind: Any = how
    labelled = jax.jit(functools.partial(search.tree_labels, how=kind))
    labels, mask = (np.asarray(x) for x in labelled(tree, trees.correct, answers=trees.answers))
    if how == "q":
        labels = (labels - trees.low) / (1.0 - trees.low)
    correct, total = (np.asarray(jax.jit(search.sums_below)(tree, x)) for x in (trees.correct, trees.answers))
    visits, parent = np.asarray(tree.visits), np.asarray(tree.parent)
    for b, slot in np.argwhere(trees.answers).tolist():
        path = _path(parent[b], slot)
        problem = policy.problems[b]
        record, owners = _aligned(policy, trees.nodes[b][slot], f"{problem.id}/tree/{slot}")
        slots = [None if i is None else path[i] for i in owners]
        known = [s is not None and bool(mask[b, s]) for s in slots]
        if record is None or not any(known):
            continue
        values = np.asarray([np.clip(labels[b, s], 0, 1) if k else 0.0 for s, k in zip(slots, known, strict=True)])
        if options.look_back and how == "q":
            values = np.asarray(_look_back(values, np.asarray(known), coefficient=options.look_back))
        own = tuple(float(value) if k else None for value, k in zip(values, known, strict=True))
        counted = {"correct": correct, "total": total, "visits": visits}
        provenance = {**told} | {
            name: [None if s is None else int(field[b, s]) for s in slots] for name, field in counted.items()
        }
        outcome = float(trees.correct[b, slot])
        yield dataclasses.replace(record, labels=own, outcome=outcome, provenance=provenance)


_look_back = functools.partial(jax.jit, static_argnames="coefficient")(rl.look_back_penalty)


def _pairs(
    policy: TaskPolicy, told: Mapping[str, Any], how: str, options: TreeOptions, trees: _Trees
) -> Iterator[StepRecord]:
    """Two records for every pair of siblings, up to the first step in which they differ."""
    rule: Any = how
    margin = _PUBLISHED_MARGINS.get(rule, 0.0) if options.margin is None else options.margin
    paired = jax.jit(functools.partial(search.step_pairs, width=options.width, rule=rule, margin=margin))
    found = jax.tree.map(np.asarray, paired(trees.tree, trees.correct, answers=trees.answers))
    q, visits = np.asarray(search.q_values(trees.tree)), np.asarray(trees.tree.visits)
    for b, node, k in np.argwhere(found.chosen >= 0).tolist():
        slots = {"chosen": int(found.chosen[b, node, k]), "rejected": int(found.rejected[b, node, k])}
        group = f"{policy.problems[b].id}/tree/{node}/{k}"
        records = {
            name: _aligned(policy, trees.nodes[b][slot], f"{group}/{name}")[0] for name, slot in slots.items()
        }
        good, bad = (() if record is None else record.steps for record in records.values())
        differ = next((i for i, (x, y) in enumerate(zip(good, bad, strict=False)) if x != y), None)
        if differ is None or edit_distance(good[differ], bad[differ]) < options.min_edits:
            continue
        for (name, record), label in zip(records.items(), (1.0, 0.0), strict=True):
            assert record is not None
            slot = slots[name]
            provenance = {**told, "q": float(q[b, slot]), "visits": int(visits[b, slot])}
            labels = (None,) * differ + (label,)
            yield dataclasses.replace(record.head(differ + 1), labels=labels, group=group, provenance=provenance)


def _path(parent: np.ndarray, slot: int) -> list[int]:
    """Slots from the root's child down to this one."""
    path = []
    while slot > 0:
        path.append(slot)
        slot = int(parent[slot])
    return path[::-1]


def _aligned(policy: TaskPolicy, partial: Partial, name: str) -> tuple[StepRecord | None, list[int | None]]:
    """A prefix as the task cuts its text, and which proposal ends where each of its steps ends.

    A proposal may hold more than one step, such as the last one and the answer: what is known about it belongs to the
    last of these. Nothing is returned where text and tokens do not have the same steps, or a step is blank.
    """
    record, pieces = as_record(policy, partial, name), policy.split(partial)
    if record is None or len(pieces) != len(record.steps) or not all(step.strip() for step in record.steps):
        return None, []
    ends, length = {}, 0
    for number, step in enumerate(partial.steps):
        length += len(step)
        ends[length] = number
    owners, length = [], 0
    for piece in pieces:
        length += len(piece)
        owners.append(ends.get(length))
    return record, owners
