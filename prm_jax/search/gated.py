"""Search in three stages: is a partial solution ready to be judged, is it still promising, which one is best.

The potential assessment reward model, PARM (arXiv 2501.13926), over the steps of a language model.
"""

from collections.abc import Callable

import jax
import numpy as np

from prm_jax import stats
from prm_jax.search.partials import Ask, Calls, Candidate, Found, Partial, ProposeFn, ScorePartials, check_counts


def gated_search(
    propose: ProposeFn,
    score: ScorePartials,
    num_questions: int,
    *,
    samples: int,
    max_steps: int,
    threshold: float = 0.5,
    ready: Callable[[Partial], bool] | None = None,
    final: ScorePartials | None = None,
) -> Found:
    """Best-of-n whose samples are dropped as soon as they no longer look promising.

    The samples continue step by step without competing. From the first step at which one is ready it is judged after
    every step, and at the first score not above `threshold` it is dropped: nothing more is generated for it. The best
    of those that remain is the answer (`stats.gated_selection`). Where none remains, the one with the highest score at
    its last judgement is completed.

    Args:
      propose: produces steps.
      score: the potential of a prefix, P(yes) in the paper.
      num_questions: P.
      samples: n of each question.
      max_steps: maximum number of steps of a solution; live ones are then candidates that are not finished.
      threshold: of the potential.
      ready: whether a prefix can be judged yet, and with it everything that follows. None: from the first step on.
      final: scores the samples that remain; None takes their last potential.

    Returns:
      `Found` whose first candidate is the choice; the others also remained to the end.

    Source: arXiv 2501.13926.
    """
    check_counts(samples=samples, max_steps=max_steps)
    calls = Calls(propose, score, num_questions)
    paths = _Paths(num_questions, samples, max_steps)
    for number in range(max_steps):
        live = [(b, i) for b, i in np.argwhere(paths.live).tolist()]
        if not live:
            break
        for place, partial in _next_steps(calls, paths, live, number, samples):
            paths.add(place, number, partial, ready is None or ready(partial))
        judged = [place for place in live if paths.mask[(*place, number)] and paths.ready[place].any()]
        values = calls.score([paths.partials[place] for place in judged])
        for place, value in zip(judged, values, strict=True):
            paths.potential[(*place, number)] = value
            paths.live[place] &= np.float32(value) > np.float32(threshold)  # as `stats.gated_selection` compares
    return calls.result(_choose(calls, paths, threshold, final, stream=samples * max_steps))


_select = jax.jit(stats.gated_selection)


class _Paths:
    """The samples of all questions, [P, N], and their steps, [P, N, S]."""

    def __init__(self, num_questions: int, samples: int, max_steps: int) -> None:
        shape = (num_questions, samples, max_steps)
        self.partials = {(b, i): Partial(b) for b in range(num_questions) for i in range(samples)}
        self.live = np.ones(shape[:2], bool)
        self.mask, self.ready = np.zeros((2, *shape), bool)
        self.potential = np.zeros(shape, np.float32)

    def add(self, place: tuple[int, int], number: int, partial: Partial, ready: bool) -> None:
        self.partials[place] = partial
        self.mask[(*place, number)], self.ready[(*place, number)] = True, ready
        self.live[place] = not partial.finished

    def last_potential(self) -> np.ndarray:
        last = np.maximum(self.mask.sum(-1) - 1, 0)
        return np.take_along_axis(self.potential, last[..., None], -1)[..., 0]


def _next_steps(
    calls: Calls, paths: _Paths, live: list[tuple[int, int]], number: int, samples: int
) -> list[tuple[tuple[int, int], Partial]]:
    """The next step of each sample; a sample without one ends."""
    if number == 0:  # one request per question: all its samples start from the same prompt
        questions = sorted({b for b, _ in live})
        found = calls.propose([Ask(Partial(b), 0) for b in questions], samples, distinct=False)
        written = {(b, i): p for b, own in zip(questions, found, strict=True) for i, p in enumerate(own)}
    else:
        asks = [Ask(paths.partials[b, i], number * samples + i) for b, i in live]
        written = {place: own[0] for place, own in zip(live, calls.propose(asks, 1), strict=True) if own}
    for place in live:
        paths.live[place] &= place in written
    return list(written.items())


def _choose(
    calls: Calls, paths: _Paths, threshold: float, final: ScorePartials | None, stream: int
) -> list[Candidate]:
    last = paths.last_potential()
    # The final scores do not decide which samples remain, so only these are scored.
    kept = np.asarray(_select(paths.ready, paths.potential, last, paths.mask, threshold=threshold).kept)
    remaining = [(b, i) for b, i in np.argwhere(kept).tolist()]
    if final is not None:
        values = calls.score([paths.partials[place] for place in remaining], final)
        for place, value in zip(remaining, values, strict=True):
            last[place] = value
    candidates = [Candidate(paths.partials[place], float(last[place])) for place in remaining]
    choice = np.asarray(_select(paths.ready, paths.potential, last, paths.mask, threshold=threshold).choice)
    lost = [(b, i) for b, i in enumerate(choice.tolist()) if i >= 0 and not kept[b].any()]
    ends = {place: paths.partials[place] for place in lost}
    going = [place for place in lost if not ends[place].finished]
    if going:
        written = calls.propose([Ask(ends[place], stream) for place in going], 1, whole=True)
        ends |= {place: own[0] for place, own in zip(going, written, strict=True) if own}
    values = calls.score(list(ends.values()), final)
    return candidates + [Candidate(p, value) for p, value in zip(ends.values(), values, strict=True)]
