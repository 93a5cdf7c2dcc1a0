"""What scores the prefixes of a search: the policy, a process reward model, or the reference answers."""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prm_jax.errors import UserError
from prm_jax.prm.prefixes import score_prefixes
from prm_jax.prm.score import PRM
from prm_jax.rollouts.policy import TaskPolicy
from prm_jax.rollouts.values import AnswerValues, Roller
from prm_jax.search.language_model import Partial

NO_STEP = -1e9
"""Score of a prefix without a step, which a reward model cannot score: it comes last."""


@dataclass(frozen=True)
class PrefixScorer:
    """Scores prefixes; what ``search.language_model`` calls.

    Attributes:
      values: prefixes -> their scores.
      output: what a score is: a mean log-probability, a probability, or a log-ratio or other score around 0.
      rollers: what makes rollouts for it.
    """

    values: Callable[[Sequence[Partial]], list[float]]
    output: Literal["logp", "probability", "score"]
    rollers: tuple[Roller, ...] = ()

    def __call__(self, partials: Sequence[Partial]) -> list[float]:
        """The scores."""
        return self.values(partials)

    def weights(self, scores: Sequence[float]) -> np.ndarray:
        """Weights of votes, at least 0: probabilities, or the sigmoid of a score."""
        values = np.asarray(scores, np.float64)
        if self.output == "logp":
            return np.exp(values)
        if self.output == "probability":
            return np.maximum(values, 0.0)
        return 1.0 / (1.0 + np.exp(-np.maximum(values, -60.0)))


def make_prefix_scorer(
    name: str, policy: TaskPolicy, *, rollouts: int, first: int, load: Callable[[str], PRM]
) -> PrefixScorer:
    """The scorer of a name.

    Args:
      name: "logp", the policy's mean log-probability of a token; "verifier", "rollouts" and "truth", which know the
        reference answers; or the path of a process reward model.
      policy: reads prefixes and makes rollouts.
      rollouts: of each prefix, for "rollouts".
      first: number of each problem's first request for rollouts; smaller ones belong to the search.
      load: loads a reward model.

    Raises:
      UserError: an unknown name.
    """
    if name == "logp":
        return PrefixScorer(lambda partials: [p.logp / max(len(p.tokens), 1) for p in partials], "logp")
    if name == "truth":
        return PrefixScorer(lambda partials: [_truth(policy, p) for p in partials], "probability")
    if name in ("verifier", "rollouts"):
        values = AnswerValues(policy, rollouts if name == "rollouts" else 0, first)
        return PrefixScorer(values, "probability", (values.roller,))
    if not pathlib.Path(name).exists():
        raise UserError(
            f"no scorer {name!r}, and no such directory: use logp, verifier, rollouts, truth, or the path of a "
            "process reward model"
        )
    prm = load(name)
    output: Literal["probability", "score"] = "probability" if gives_probabilities(prm) else "score"
    return PrefixScorer(lambda partials: score_prefixes(prm, policy, partials, blank=NO_STEP), output)


def gives_probabilities(prm: PRM) -> bool:
    """Whether the model's scores are probabilities of success."""
    return prm.output in ("probability", "value")


def _truth(policy: TaskPolicy, partial: Partial) -> float:
    """1 while every step is correct; after an error less than 0, and more if the error comes late."""
    labels = policy.task.step_labels(policy.problems[partial.question], policy.text(partial))
    if labels is None:
        raise UserError(f"the task {policy.task.name!r} has no exact step checker: give another --scorer")
    if not labels:
        return 0.0
    return 1.0 if all(labels) else labels.index(False) / len(labels) - 1.0
