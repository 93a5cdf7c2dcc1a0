"""Prefixes scored by their value and by the progress that their last step makes under a prover (arXiv 2410.08146)."""

from collections.abc import Sequence

import numpy as np

from prm_jax.errors import UserError
from prm_jax.prm.prefix_scores import PrefixScorer
from prm_jax.rollouts.policy import TaskPolicy
from prm_jax.search.language_model import Partial


def with_progress(
    value: PrefixScorer, policy: TaskPolicy, *, alpha: float, prover: PrefixScorer | None = None, best_of: int = 1
) -> PrefixScorer:
    """A scorer of process advantage verifiers: V(prefix) + alpha * (V_p(prefix) - V_p(prefix without its last step)).

    V_p is the prover's value. Before the first step it is the mean over the first steps that were scored together.
    Where nothing follows a prefix its score is V alone.

    Args:
      value: the policy's own values V.
      policy: knows the current problems.
      alpha: weight of the progress, >= 0; 0.2 to 0.5 in the paper.
      prover: values of another prover; None: `value`.
      best_of: V_p becomes that of the best of so many completions, 1 - (1 - V_p)^k.

    Raises:
      UserError: values that are not probabilities.
    """
    for name, one in (("--scorer", value), ("--prover", prover or value)):
        if one.output != "probability":
            raise UserError(
                f"--progress-alpha needs values of prefixes, but the scores of {name} are not probabilities: use "
                "rollouts, or a reward model that gives some, such as the kinds value, token and outcome"
            )
    scores = _Progress(value, policy, alpha, prover, best_of)
    rollers = value.rollers + (() if prover is None else prover.rollers)
    return PrefixScorer(scores, "score", rollers)


def best_of_k(values: np.ndarray, k: int) -> np.ndarray:
    """`rl.best_of_k_value` in NumPy, since every number of values would be compiled; scores of any kind for k = 1."""
    return values if k == 1 else 1.0 - (1.0 - values) ** k


class _Progress:
    """Keeps the prover's values of the current problems, since most parents were scored before."""

    def __init__(
        self, value: PrefixScorer, policy: TaskPolicy, alpha: float, prover: PrefixScorer | None, best_of: int
    ) -> None:
        self.value, self.policy, self.alpha, self.prover, self.best_of = value, policy, alpha, prover, best_of
        self.known: dict[tuple[int, tuple[tuple[int, ...], ...]], float] = {}
        self.problems = policy.problems

    def __call__(self, partials: Sequence[Partial]) -> list[float]:
        if self.problems is not self.policy.problems:
            self.problems = self.policy.problems
            self.known.clear()
        values = np.asarray(self.value(partials), np.float64)
        proved = values if self.prover is None else np.asarray(self.prover(partials), np.float64)
        proved = best_of_k(proved, self.best_of)
        self._learn(partials, proved)
        before = np.asarray([self.known[p.question, p.steps[:-1]] for p in partials])
        effective = values + self.alpha * (proved - before)
        return np.where([p.finished for p in partials], values, effective).tolist()

    def _learn(self, partials: Sequence[Partial], proved: np.ndarray) -> None:
        """Keeps the prover's values, and computes those of parents that are missing."""
        self.known |= {(p.question, p.steps): float(v) for p, v in zip(partials, proved, strict=True)}
        missing = {(p.question, p.steps[:-1]): p for p in partials if (p.question, p.steps[:-1]) not in self.known}
        for question in {question for question, steps in missing if not steps}:
            first = [v for p, v in zip(partials, proved, strict=True) if p.question == question and len(p.steps) == 1]
            self.known[question, ()] = float(np.mean(first)) if first else 0.5
        parents = [Partial(question, steps) for question, steps in missing if steps]
        if parents:
            found = (self.prover or self.value)(parents)
            best = best_of_k(np.asarray(found, np.float64), self.best_of).tolist()
            self.known |= {(p.question, p.steps): value for p, value in zip(parents, best, strict=True)}
