"""Search trees over a policy's steps as step data: AlphaMath's and ReST-MCTS*'s values, shares of answers, pairs."""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prm_jax.errors import UserError
from prm_jax.rollouts.values import AnswerValues

if TYPE_CHECKING:
    from prm_jax.commands.label import Options
    from prm_jax.data.step_data import StepRecord
    from prm_jax.rollouts import TaskPolicy

_PUBLISHED_MARGINS = {"top_bottom": 0.5}


def load_value_model(options: "Options") -> Any:
    """The process reward model of the options, whose scores are chances of success.

    Raises:
      UserError: its scores are something else.
    """
    from prm_jax.commands.scoring import load

    prm = load(options.tree.scorer, options.tree.layout, "", options.dtype, options.mesh)
    output = prm.output
    if output not in ("probability", "value"):
        raise UserError(
            f"{options.tree.scorer} is of the kind {prm.spec.kind.kind!r}, whose scores are no chances: the values "
            "of a tree need one that gives chances, such as token, value or outcome"
        )
    return prm


def tree_records(options: "Options", engine: "TaskPolicy", prm: Any) -> tuple[list["StepRecord"], int]:
    """Searches the engine's problems and makes records of the trees.

    Args:
      options: of the command.
      engine: already turned to a chunk of problems.
      prm: from `load_value_model`, or None where the options name another scorer.

    Returns:
      (records, proposals and rollouts made).
    """
    trees = _search(options, engine, prm)
    if options.labels in ("soft", "hard", "q", "quality"):
        return list(_solutions(options, engine, trees)), trees.calls
    return list(_pairs(options, engine, trees)), trees.calls


class _Trees(NamedTuple):
    tree: Any
    nodes: list[dict[int, Any]]  # for each question: slot -> prefix
    correct: Any  # [B, N] bool: nodes with a right answer
    answers: Any  # [B, N] bool: nodes with an answer that could be checked
    low: float  # what a wrong answer is worth; a right one is worth 1
    calls: int


def _search(options: "Options", engine: "TaskPolicy", prm: Any) -> _Trees:
    import numpy as np

    from prm_jax import search
    from prm_jax.search import language_model as lm

    values = _Values(options, engine, prm)
    method = functools.partial(search.alphamath, c=1.5, depth_value=values.low)
    if options.tree.rule == "rest_mcts":
        method = functools.partial(search.rest_mcts, depth_value=values.low)
    found, tree, nodes = lm.tree_search(
        engine.propose, values, len(engine.problems), simulations=options.tree.simulations, width=options.tree.width,
        max_steps=options.tree.max_steps, method=method,
    )  # fmt: skip
    answers, correct = np.zeros((2, *tree.parent.shape), bool)
    for b, own in enumerate(nodes):
        for slot, partial in own.items():
            right = values.verdicts.get((b, partial.steps))
            answers[b, slot], correct[b, slot] = right is not None, bool(right)
    return _Trees(tree, nodes, correct, answers, values.low, int(found.proposals.sum()) + values.roller.calls)


class _Values(AnswerValues):
    """What prefixes are worth to the search, from 1 down to `low`."""

    def __init__(self, options: "Options", engine: "TaskPolicy", prm: Any) -> None:
        # The requests below belong to the tree's proposals, one a slot.
        first = 1 + options.tree.simulations * options.tree.width
        super().__init__(engine, options.rollouts if options.tree.scorer == "rollouts" else 0, first)
        self.prm, self.low = prm, -1.0 if options.tree.rule == "alphamath" else 0.0

    def __call__(self, partials: Sequence[Any]) -> list[float]:
        """See above."""
        return [self.low + (1.0 - self.low) * chance for chance in super().__call__(partials)]

    def unfinished(self, partials: Sequence[Any]) -> list[float]:
        """By the reward model, where there is one."""
        if self.prm is None or not partials:
            return super().unfinished(partials)
        from prm_jax.prm.prefixes import score_prefixes

        return score_prefixes(self.prm, self.policy, partials, blank=0.5)


def _solutions(options: "Options", engine: "TaskPolicy", trees: _Trees) -> Iterator["StepRecord"]:
    """A record for every answer: each step with the label of its node, so that shared steps are told again."""
    import jax
    import numpy as np

    from prm_jax import search
    from prm_jax.commands.label import provenance
    from prm_jax.data.step_data import StepRecord

    tree = trees.tree
    how: Any = options.labels
    labelled = jax.jit(functools.partial(search.tree_labels, how=how))
    labels, mask = (np.asarray(x) for x in labelled(tree, trees.correct, answers=trees.answers))
    if options.labels == "q":
        labels = (labels - trees.low) / (1.0 - trees.low)
    right, total = (np.asarray(jax.jit(search.sums_below)(tree, x)) for x in (trees.correct, trees.answers))
    visits, parent = np.asarray(tree.visits), np.asarray(tree.parent)
    for b, slot in np.argwhere(trees.answers).tolist():
        path = _path(parent[b], slot)
        texts, owners = _aligned(engine, trees.nodes[b][slot])
        slots = [None if i is None else path[i] for i in owners]
        known = [s is not None and bool(mask[b, s]) for s in slots]
        if not texts or not any(known):
            continue
        own = tuple(float(np.clip(labels[b, s], 0, 1)) if k else None for s, k in zip(slots, known, strict=True))
        told = provenance(options) | {
            "correct": [None if s is None else int(right[b, s]) for s in slots],
            "total": [None if s is None else int(total[b, s]) for s in slots],
            "visits": [None if s is None else int(visits[b, s]) for s in slots],
        }
        problem = engine.problems[b]
        outcome = float(trees.correct[b, slot])
        yield StepRecord(problem.prompt, texts, own, outcome, problem.id, f"{problem.id}/tree/{slot}", told)


def _pairs(options: "Options", engine: "TaskPolicy", trees: _Trees) -> Iterator["StepRecord"]:
    """Two records for every pair of siblings, up to the first step in which they differ."""
    import jax
    import numpy as np

    from prm_jax import search
    from prm_jax.commands.label import provenance
    from prm_jax.data.step_data import StepRecord

    rule: Any = options.labels
    margin = _PUBLISHED_MARGINS.get(rule, 0.0) if options.tree.margin is None else options.tree.margin
    paired = jax.jit(functools.partial(search.step_pairs, width=options.tree.width, rule=rule, margin=margin))
    found = jax.tree.map(np.asarray, paired(trees.tree, trees.correct, answers=trees.answers))
    q, visits = np.asarray(search.q_values(trees.tree)), np.asarray(trees.tree.visits)
    for b, node, k in np.argwhere(found.chosen >= 0).tolist():
        slots = {"chosen": int(found.chosen[b, node, k]), "rejected": int(found.rejected[b, node, k])}
        texts = {name: _aligned(engine, trees.nodes[b][slot])[0] for name, slot in slots.items()}
        good, bad = texts["chosen"], texts["rejected"]
        differ = next((i for i, (x, y) in enumerate(zip(good, bad, strict=False)) if x != y), None)
        if differ is None or edit_distance(good[differ], bad[differ]) < options.tree.min_edits:
            continue
        problem = engine.problems[b]
        group = f"{problem.id}/tree/{node}/{k}"
        for (name, slot), label in zip(slots.items(), (1.0, 0.0), strict=True):
            told = provenance(options) | {"q": float(q[b, slot]), "visits": int(visits[b, slot])}
            labels = (None,) * differ + (label,)
            yield StepRecord(
                problem.prompt, texts[name][: differ + 1], labels, None, group, f"{group}/{name}", told
            )


def _path(parent: Any, slot: int) -> list[int]:
    """Slots from the root's child down to this one."""
    path = []
    while slot > 0:
        path.append(slot)
        slot = int(parent[slot])
    return path[::-1]


def _aligned(engine: "TaskPolicy", partial: Any) -> tuple[tuple[str, ...], list[int | None]]:
    """The steps of a prefix as the task cuts its text, and which proposal ends where each of them ends.

    A proposal may hold more than one step, the answer's for example: what is known of it belongs to the last. Where
    text and tokens do not have the same steps, nothing is given.
    """
    text = engine.text(partial)
    texts = tuple(text[start:end] for start, end in engine.task.splitter(text))
    pieces = engine.split(partial.tokens)
    if len(pieces) != len(texts):
        return (), []
    ends, length = {}, 0
    for number, step in enumerate(partial.steps):
        length += len(step)
        ends[length] = number
    owners, length = [], 0
    for piece in pieces:
        length += len(piece)
        owners.append(ends.get(length))
    return texts, owners


def edit_distance(a: str, b: str) -> int:
    """Fewest letters to insert, delete or replace to turn one text into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
