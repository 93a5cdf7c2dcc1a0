"""OmegaPRM: labelled prefixes and located first errors from rollouts, many questions in lock-step.

Text stays on the host; one function produces and judges rollouts for many requests at once.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from prm_jax.search.omega import first_error_search, omega_select

Steps = tuple[Hashable, ...]


class PrefixRequest(NamedTuple):
    """A request for rollouts.

    Attributes:
      question: its number.
      prefix: the steps to continue.
    """

    question: int
    prefix: Steps


class JudgedRollout(NamedTuple):
    """One completion of a prefix.

    Attributes:
      steps: the steps after the prefix.
      length: in the unit of `omega_label`'s L.
      correct: whether the answer is correct; None where that is unknown, because the reference or the verifier is at
        fault. Such a rollout is not counted.
    """

    steps: Steps
    length: float
    correct: bool | None


class PrefixState(NamedTuple):
    """A prefix whose rollouts were counted; the label of its last step.

    Attributes:
      question: its number.
      prefix: the steps.
      correct: correct rollouts.
      total: rollouts that could be judged.
    """

    question: int
    prefix: Steps
    correct: int
    total: int

    @property
    def mc(self) -> float:
        """The share of correct ones, 0 where none could be judged."""
        return self.correct / max(self.total, 1)


class LocatedError(NamedTuple):
    """A wrong solution and its first wrong step.

    Attributes:
      question: its number.
      number: of the search that located it, from 0.
      steps: the whole solution.
      start: number of the steps that belong to the prefix from which the wrong rollout started.
      first_error: index of the first wrong step.
    """

    question: int
    number: int
    steps: Steps
    start: int
    first_error: int


@dataclasses.dataclass(frozen=True)
class OmegaLabels:
    """Results of `omega_label`.

    Attributes:
      states: every prefix that was estimated, the empty one of each question first.
      errors: every located error.
      calls: [P] i64, rollouts that each question took.
      searches: [P] i64, binary searches done for each question.
    """

    states: tuple[PrefixState, ...]
    errors: tuple[LocatedError, ...]
    calls: np.ndarray
    searches: np.ndarray


_select = jax.jit(omega_select)

RolloutFn = Callable[[Sequence[PrefixRequest], int], Sequence[Sequence[JudgedRollout]]]
"""(requests, number of rollouts for each) -> for each request its rollouts."""


def omega_label(
    rollout_fn: RolloutFn,
    num_questions: int,
    *,
    rollouts: int = 8,
    searches: int = 100,
    alpha: float = 0.5,
    beta: float = 0.9,
    L: float = 500.0,
    c: float = 0.125,
    on_search: Callable[[int, "OmegaLabels"], None] | None = None,
) -> OmegaLabels:
    """Estimates prefixes and locates first errors, all questions in lock-step.

    Each search picks a wrong rollout (`omega_select`) and locates its first error (`first_error_search`); every prefix
    probed on the way becomes a state, whose wrong rollouts join the pool. No prefix is estimated twice, and no rollout
    is picked twice. A question ends when its pool is empty; one whose first rollouts are all correct or all wrong ends
    at once. Where no rollout of a probed prefix could be judged, the search that requested it locates nothing.

    Args:
      rollout_fn: produces and judges rollouts; called for all questions together.
      num_questions: P.
      rollouts: k, rollouts from each state.
      searches: maximum number of searches per question.
      alpha: see `omega_select`.
      beta: see `omega_select`.
      L: see `omega_select`, in the unit of `JudgedRollout.length`.
      c: see `omega_select`.
      on_search: called with (searches done, what was found so far) after each, for progress or for saving.

    Returns:
      `OmegaLabels`.

    Raises:
      ValueError: `rollout_fn` returned another number of rollouts than was asked for.

    Source: arXiv 2406.06592.
    """
    pools = [_Pool(b) for b in range(num_questions)]
    _estimate(pools, [(pool, ()) for pool in pools], rollout_fn, rollouts)
    errors: list[LocatedError] = []
    counts = np.zeros(num_questions, np.int64)
    for number in range(searches):
        picks = _pick(pools, alpha, beta, L, c)
        if not picks:
            break
        for (pool, (start, steps)), first in zip(picks, _locate(picks, rollout_fn, rollouts), strict=True):
            counts[pool.question] += 1
            if first is not None:
                errors.append(LocatedError(pool.question, number, start + steps, len(start), len(start) + first))
        if on_search is not None:
            on_search(number + 1, _labels(pools, errors, counts))
    return _labels(pools, errors, counts)


class _Pool:
    """States and wrong rollouts of one question."""

    def __init__(self, question: int) -> None:
        self.question, self.calls = question, 0
        self.states: dict[Steps, PrefixState] = {}
        self.visits: list[int] = []
        self.wrong: list[tuple[int, JudgedRollout]] = []  # (number of the state, rollout)
        self.used: list[bool] = []

    def add(self, prefix: Steps, found: Sequence[JudgedRollout]) -> None:
        number = len(self.states)
        judged = [r.correct for r in found if r.correct is not None]
        self.states[prefix] = PrefixState(self.question, prefix, sum(judged), len(judged))
        self.visits.append(0)
        self.calls += len(found)
        # A rollout without steps has no wrong step: the prefix was the whole solution.
        wrong = [(number, r) for r in found if r.correct is False and r.steps]
        self.wrong += wrong
        self.used += [False] * len(wrong)


_Job = tuple[Steps, Steps]
"""(prefix, steps of a wrong rollout from it)."""


def _estimate(
    pools: Sequence[_Pool], wanted: Sequence[tuple[_Pool, Steps]], rollout_fn: RolloutFn, rollouts: int
) -> None:
    """Rolls out from prefixes that have not been estimated."""
    new = [(pool, prefix) for pool, prefix in wanted if prefix not in pool.states]
    if not new:
        return
    answers = rollout_fn([PrefixRequest(pool.question, prefix) for pool, prefix in new], rollouts)
    if len(answers) != len(new):
        raise ValueError(f"rollout_fn answered {len(answers)} of {len(new)} requests")
    for (pool, prefix), found in zip(new, answers, strict=True):
        if len(found) != rollouts:
            raise ValueError(f"rollout_fn gave {len(found)} rollouts for question {pool.question}, asked {rollouts}")
        pool.add(prefix, found)


def _pick(pools: Sequence[_Pool], alpha: float, beta: float, L: float, c: float) -> list[tuple[_Pool, _Job]]:
    """The next wrong rollout of every question that has one, marked as used."""
    # Sizes are rounded up to powers of two, so that few programs are compiled as the pools grow.
    states = _ceil(max((len(pool.states) for pool in pools), default=1))
    size = _ceil(max((len(pool.wrong) for pool in pools), default=1))
    mc, visits = np.zeros((2, len(pools), states), np.float32)
    state, length = np.full((len(pools), size), -1, np.int32), np.zeros((len(pools), size), np.float32)
    used = np.ones((len(pools), size), bool)
    for b, pool in enumerate(pools):
        mc[b, : len(pool.states)] = [s.mc for s in pool.states.values()]
        visits[b, : len(pool.states)] = pool.visits
        state[b, : len(pool.wrong)] = [number for number, _ in pool.wrong]
        length[b, : len(pool.wrong)] = [rollout.length for _, rollout in pool.wrong]
        used[b, : len(pool.wrong)] = pool.used
    chosen, _ = _select(mc, visits, state, length, used, alpha, beta, L, c)
    picks = []
    for pool, i in zip(pools, np.asarray(chosen).tolist(), strict=True):
        if i < 0:
            continue
        number, rollout = pool.wrong[i]
        pool.used[i] = True
        pool.visits[number] += 1
        picks.append((pool, (list(pool.states)[number], rollout.steps)))
    return picks


def _locate(picks: Sequence[tuple[_Pool, _Job]], rollout_fn: RolloutFn, rollouts: int) -> list[int | None]:
    """First error of each picked rollout, counted from the start of the rollout; None where it is unknown."""
    n_steps = np.array([len(steps) for _, (_, steps) in picks])
    unknown = np.zeros(len(picks), bool)

    def probe(mid: np.ndarray) -> np.ndarray:
        asked = [
            (pool, start + steps[: m + 1]) for (pool, (start, steps)), m in zip(picks, mid.tolist(), strict=True)
        ]
        live = [one for one, m in zip(asked, mid.tolist(), strict=True) if m >= 0]
        _estimate([pool for pool, _ in picks], live, rollout_fn, rollouts)
        states = [pool.states.get(prefix) if m >= 0 else None for (pool, prefix), m in zip(asked, mid, strict=True)]
        unknown[:] |= [state is not None and state.total == 0 for state in states]
        return np.array([0.0 if state is None else state.mc for state in states])

    found = first_error_search(probe, n_steps, int(n_steps.max()), host=True)  # type: ignore[arg-type]
    first = np.asarray(found.first_error).tolist()
    return [None if no else error for no, error in zip(unknown.tolist(), first, strict=True)]


def _labels(pools: Sequence[_Pool], errors: Sequence[LocatedError], counts: np.ndarray) -> OmegaLabels:
    states = tuple(state for pool in pools for state in pool.states.values())
    return OmegaLabels(states, tuple(errors), np.array([pool.calls for pool in pools], np.int64), counts.copy())


def _ceil(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
