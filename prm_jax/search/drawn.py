"""Search trees as lists of nodes, for drawing: what a search looked at, with visits and values."""

from collections.abc import Mapping, Sequence

import numpy as np

from prm_jax.search.partials import DrawnNode, DrawnTree, Partial, ScorePartials, Tokens
from prm_jax.search.tree import Tree, q_values


def draw_tree(tree: Tree, nodes: Sequence[Mapping[int, Partial]]) -> tuple[DrawnTree, ...]:
    """The trees of a tree search.

    Args:
      tree: [B, N] trees.
      nodes: for each question the prefix of every node by its slot.

    Returns:
      A list of nodes per question, in the order of their slots; values are `q_values`, or the evaluator's where a node
      has no visits.
    """
    visits, value = np.asarray(tree.visits), np.asarray(tree.value)
    means, parents = np.asarray(q_values(tree)), np.asarray(tree.parent)
    drawn = []
    for b, own in enumerate(nodes):
        place = {slot: index for index, slot in enumerate(sorted(own))}
        drawn.append(
            tuple(
                DrawnNode(
                    place.get(int(parents[b, slot]), -1),
                    own[slot],
                    float(visits[b, slot]),
                    float(means[b, slot] if visits[b, slot] else value[b, slot]),
                )
                for slot in place
            )
        )
    return tuple(drawn)


class ScoredPrefixes:
    """A scorer that keeps what it scored, so that searches without a tree can be drawn as one.

    Args:
      score: scores prefixes.
      num_questions: P.
    """

    def __init__(self, score: ScorePartials, num_questions: int) -> None:
        self._score = score
        self._seen: list[dict[tuple[Tokens, ...], tuple[Partial, float]]] = [{} for _ in range(num_questions)]

    def __call__(self, partials: Sequence[Partial]) -> Sequence[float]:
        """The scores."""
        scores = self._score(partials)
        for partial, score in zip(partials, scores, strict=True):
            self._seen[partial.question][partial.steps] = (partial, float(score))
        return scores

    def trees(self) -> tuple[DrawnTree, ...]:
        """The prefixes of each question as a tree; prefixes of scored ones that were not scored have no value."""
        return tuple(_as_tree(b, seen) for b, seen in enumerate(self._seen))


def _as_tree(question: int, seen: Mapping[tuple[Tokens, ...], tuple[Partial, float]]) -> DrawnTree:
    visits: dict[tuple[Tokens, ...], int] = {(): 0}
    for steps in seen:
        for depth in range(len(steps) + 1):
            visits[steps[:depth]] = visits.get(steps[:depth], 0) + 1
    order = sorted(visits, key=len)
    place = {steps: index for index, steps in enumerate(order)}
    return tuple(
        DrawnNode(
            place[steps[:-1]] if steps else -1,
            seen[steps][0] if steps in seen else Partial(question, steps),
            float(visits[steps]),
            seen[steps][1] if steps in seen else None,
        )
        for steps in order
    )
