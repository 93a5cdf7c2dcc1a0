"""Scores of the prefixes of a search."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prm_jax.data.step_data import StepRecord
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.rollouts import TaskPolicy


def score_prefixes(prm: PRM, policy: TaskPolicy, partials: Sequence[Any], *, blank: float) -> list[float]:
    """Scores prefixes as whole solutions.

    Args:
      prm: the model.
      policy: knows the problems and reads prefixes as steps.
      partials: the prefixes.
      blank: score of a prefix without a step.
    """
    records = [as_record(policy, partial) for partial in partials]
    # An unfinished prefix has no end token, even where the layout writes one after whole solutions.
    written = [
        dataclasses.replace(record, provenance={**record.provenance, "finished": partial.finished})
        for partial, record in zip(partials, records, strict=True)
        if record is not None
    ]
    scored = iter(score_solutions(prm, written) if written else [])
    return [blank if record is None else next(scored).response for record in records]


def as_record(policy: TaskPolicy, partial: Any, name: str = "") -> StepRecord | None:
    """A prefix of a search as step data; None while it has no step."""
    problem, steps = policy.problems[partial.question], policy.texts(partial)
    if not steps:
        return None
    forced = policy.forced(partial)
    return StepRecord(problem.prompt, steps, None, None, problem.id, name or problem.id, forced=forced)
