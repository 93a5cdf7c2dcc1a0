"""Labels from rollouts: OmegaPRM's located errors, and rollouts after every step of solutions.

OmegaPRM: arXiv 2406.06592. Every step: arXiv 2312.08935. Adaptive numbers of rollouts: arXiv 2212.00568.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.prm.prefixes import as_record
from prm_jax.rollouts.policy import TaskPolicy
from prm_jax.rollouts.values import Roller, count_correct
from prm_jax.search.language_model import Partial
from prm_jax.search.omega_prm import JudgedRollout, PrefixRequest, omega_label

Counts = Sequence[tuple[int, int] | None]
"""(correct, judged) rollouts after each step; None where none were made."""


def omega_records(
    policy: TaskPolicy, told: Mapping[str, Any], *, labels: str, rollouts: int, searches: int
) -> tuple[list[StepRecord], int]:
    """A record for every located error: what is known about each prefix, and the first wrong step.

    Args:
      policy: with a current chunk of problems.
      told: provenance that all records share.
      labels: "soft", "hard" or "vstar".
      rollouts: from each prefix.
      searches: maximum number of searches per problem.

    Returns:
      (records, number of rollouts).
    """
    roller = Roller(policy)
    found = omega_label(
        roller, len(policy.problems), rollouts=rollouts, searches=searches, L=float(policy.steps.max_new_tokens)
    )
    states = {(s.question, s.prefix): (s.correct, s.total) for s in found.states}
    records = []
    for error in found.errors:
        counts = [states.get((error.question, error.steps[: i + 1])) for i in range(len(error.steps))]
        # The whole solution is known to be wrong without a rollout.
        counts[-1] = counts[-1] or (0, 1)
        name = f"omega/{error.number}"
        records.append(_record(policy, told, error.question, error.steps, counts, labels, name, 0.0))
    return [record for record in records if record is not None], roller.calls


def every_step_records(
    policy: TaskPolicy, told: Mapping[str, Any], *, labels: str, rollouts: int, solutions: int
) -> tuple[list[StepRecord], int]:
    """A record for every sampled solution, with rollouts after each of its steps but the last.

    Args:
      policy: with a current chunk of problems.
      told: provenance that all records share.
      labels: "soft", "hard" or "vstar".
      rollouts: from each prefix.
      solutions: per problem.

    Returns:
      (records, number of rollouts).
    """
    roller = Roller(policy)
    sampled, requests = _sampled(roller, len(policy.problems), solutions)
    counts = [count_correct(found) for found in roller(requests, rollouts)]
    return _solution_records(policy, told, sampled, counts, labels), roller.calls


def adaptive_records(
    policy: TaskPolicy, told: Mapping[str, Any], *, labels: str, rollouts: int, solutions: int, pilot: int
) -> tuple[list[StepRecord], int]:
    """As `every_step_records`, with more rollouts where a prefix's value is uncertain.

    `pilot` rollouts from every prefix estimate its value p. The problem's other rollouts, in all `rollouts` per prefix,
    are divided in proportion to sqrt(p (1 - p)), at least one each, which minimises the summed variance of all values.
    Soft labels are the shares of these fresh rollouts alone, so that they are unbiased; hard ones count all.

    Args:
      policy: with a current chunk of problems.
      told: provenance that all records share.
      labels: "soft", "hard" or "vstar".
      rollouts: mean number from each prefix, the pilot's included.
      solutions: per problem.
      pilot: rollouts from each prefix at first, less than `rollouts`.

    Returns:
      (records, number of rollouts).

    Source: adapting on early samples and estimating several expectations from fresh ones, arXiv 2212.00568.
    """
    roller = Roller(policy)
    sampled, requests = _sampled(roller, len(policy.problems), solutions)
    first = [count_correct(found) for found in roller(requests, pilot)]
    shares = _shares(requests, first, rollouts - pilot)
    fresh: list[tuple[int, int]] = [(0, 0)] * len(requests)
    for count in sorted(set(shares)):  # one call per number, in an order that does not depend on other problems
        members = [place for place, share in enumerate(shares) if share == count]
        for place, found in zip(members, roller([requests[i] for i in members], count), strict=True):
            fresh[place] = count_correct(found)
    pooled = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(first, fresh, strict=True)]
    counts = fresh if labels == "soft" else pooled
    return _solution_records(policy, told, sampled, counts, labels), roller.calls


def _sampled(
    roller: Roller, problems: int, solutions: int
) -> tuple[list[tuple[int, JudgedRollout]], list[PrefixRequest]]:
    """(problem, solution) of every judged solution, and all of their prefixes between the first and the last step."""
    roots = roller([PrefixRequest(b, ()) for b in range(problems)], solutions)
    sampled = [(b, r) for b, found in enumerate(roots) for r in found if r.steps and r.correct is not None]
    return sampled, [PrefixRequest(b, r.steps[:i]) for b, r in sampled for i in range(1, len(r.steps))]


def _solution_records(
    policy: TaskPolicy,
    told: Mapping[str, Any],
    sampled: Sequence[tuple[int, JudgedRollout]],
    counts: Sequence[tuple[int, int]],
    labels: str,
) -> list[StepRecord]:
    """Records of solutions, given the counts of all their prefixes; the last step's is the solution's own outcome."""
    records, remaining = [], iter(counts)
    numbers = collections.Counter[int]()  # of a problem's own solutions, so that names do not depend on the others
    for b, rollout in sampled:
        correct = bool(rollout.correct)
        own = [next(remaining) for _ in rollout.steps[:-1]] + [(int(correct), 1)]
        records.append(_record(policy, told, b, rollout.steps, own, labels, f"sample/{numbers[b]}", float(correct)))
        numbers[b] += 1
    return [record for record in records if record is not None]


def _shares(requests: Sequence[PrefixRequest], first: Sequence[tuple[int, int]], each: int) -> list[int]:
    """Further rollouts of each prefix, `each` on average over the prefixes of a problem."""
    shares = [0] * len(requests)
    for b in sorted({request.question for request in requests}):
        own = [place for place, request in enumerate(requests) if request.question == b]
        # Half a right and half a wrong rollout more, so that no value is certain after a few.
        rates = np.asarray([(first[i][0] + 0.5) / (first[i][1] + 1) for i in own], np.float32)
        found = rl.budget_allocation(rates, total=each * len(own), minimum=1)
        for place, share in zip(own, np.asarray(found).tolist(), strict=True):
            shares[place] = share
    return shares


def _record(
    policy: TaskPolicy, told: Mapping[str, Any], question: int, steps: Sequence[Any], counts: Counts, how: str,
    name: str, outcome: float,
) -> StepRecord | None:  # fmt: skip
    """Step data of one solution; None where its text does not have the steps of its tokens."""
    problem = policy.problems[question]
    record = as_record(policy, Partial(question, tuple(steps)), f"{problem.id}/{name}")
    if record is None or len(record.steps) != len(steps):
        return None
    correct = np.array([[0 if c is None else c[0] for c in counts]])
    total = np.array([[0 if c is None else c[1] for c in counts]])
    kind: Any = how
    values = np.asarray(rl.mc_targets(correct, total, np.ones_like(total, bool), how=kind))[0].tolist()
    # For "vstar", a step before one from which the answer was reached is correct, whether it was probed or not.
    inferred = [how == "vstar" and value > 0 for value in values]
    known = [(c is not None and c[1] > 0) or sure for c, sure in zip(counts, inferred, strict=True)]
    provenance = {
        **told,
        "correct": [None if c is None else c[0] for c in counts],
        "total": [None if c is None else c[1] for c in counts],
    }
    labels = tuple(value if know else None for value, know in zip(values, known, strict=True))
    return dataclasses.replace(record, labels=labels, outcome=outcome, provenance=provenance)
