"""Searches that revise what they have written: whole solutions from their first wrong step, or single steps.

When and where to refine: GLoRe, arXiv 2402.10963. Refining a step whose score is too low: ReARTeR, arXiv 2501.07861.
"""

from collections.abc import Sequence

from prm_jax.search.partials import Ask, Calls, Candidate, Found, Partial, ProposeFn, ScorePartials, check_counts


def refine_search(
    propose: ProposeFn, score: ScorePartials, num_questions: int, *, samples: int, width: int, gate: float,
    max_steps: int,
) -> Found:  # fmt: skip
    """Drafts, each refined where it goes wrong, and the best of all.

    A draft is written step by step. Its first step with a score below `gate` is where it goes wrong; without one the
    draft stands. A wrong draft gets `width` local refinements, which continue from before that step, and `width` global
    ones, which begin again. Drafts and refinements are candidates, ranked by the score of the whole.

    Args:
      propose: produces steps and whole solutions.
      score: scores prefixes.
      num_questions: P.
      samples: drafts per question.
      width: refinements of either kind per wrong draft.
      gate: scores below it are wrong.
      max_steps: maximum number of steps of a draft.

    Returns:
      `Found`.

    Source: arXiv 2402.10963, with the policy itself as the refiner.
    """
    check_counts(samples=samples, width=width, max_steps=max_steps)
    calls = Calls(propose, score, num_questions)
    drafts = _drafts(calls, num_questions, samples, max_steps)
    paths = [_prefixes(draft) for draft in drafts]
    values = iter(calls.score([prefix for path in paths for prefix in path]))
    candidates, asks = [], []
    for place, (draft, path) in enumerate(zip(drafts, paths, strict=True)):
        own = [next(values) for _ in path]
        candidates.append(Candidate(draft, own[-1]))
        wrong = next((index for index, value in enumerate(own) if value < gate), None)
        if wrong is None:
            continue
        first = samples * max_steps + 2 * (place % samples)
        before = path[wrong - 1] if wrong else Partial(draft.question)
        asks += [Ask(before, first), Ask(Partial(draft.question), first + 1)]
    refined = [one for own in calls.propose(asks, width, whole=True) for one in own] if asks else []
    candidates += [Candidate(p, value) for p, value in zip(refined, calls.score(refined), strict=True)]
    return calls.result(candidates)


def refine_step_search(
    propose: ProposeFn, score: ScorePartials, num_questions: int, *, samples: int, width: int, gate: float,
    max_steps: int,
) -> Found:  # fmt: skip
    """Samples whose steps are written again, up to `width` times, while their score is below `gate`.

    Of the attempts at a step the best is kept.

    Args:
      propose: produces steps.
      score: scores prefixes.
      num_questions: P.
      samples: solutions per question.
      width: further attempts at a step.
      gate: scores below it call for another attempt.
      max_steps: maximum number of steps of a solution.

    Returns:
      `Found`.

    Source: arXiv 2501.07861, with the policy itself in place of the model that explains the score.
    """
    check_counts(samples=samples, width=width, max_steps=max_steps)
    calls = Calls(propose, score, num_questions)
    live = {(b, i): Partial(b) for b in range(num_questions) for i in range(samples)}
    candidates: list[Candidate] = []
    for number in range(max_steps):
        best: dict[tuple[int, int], Candidate] = {}
        open_ = list(live)
        for attempt in range(width + 1):
            asks = [Ask(live[place], (number * samples + place[1]) * (width + 1) + attempt) for place in open_]
            found = calls.propose(asks, 1) if asks else []
            written = {place: own[0] for place, own in zip(open_, found, strict=True) if own}
            for place, value in zip(written, calls.score(list(written.values())), strict=True):
                if place not in best or value > best[place].score:
                    best[place] = Candidate(written[place], value)
            open_ = [place for place in written if best[place].score < gate]
        live = {place: one.partial for place, one in best.items() if not one.partial.finished}
        last = number == max_steps - 1
        candidates += [one for one in best.values() if one.partial.finished or last]
        if not live:
            break
    return calls.result(candidates)


def _drafts(calls: Calls, num_questions: int, samples: int, max_steps: int) -> list[Partial]:
    """Solutions written step by step, question by question; those without a step are left out."""
    paths = {(b, i): Partial(b) for b in range(num_questions) for i in range(samples)}
    for number in range(max_steps):
        going = [place for place, partial in paths.items() if not partial.finished and len(partial.steps) == number]
        asks = [Ask(paths[place], number * samples + place[1]) for place in going]
        for place, own in zip(going, calls.propose(asks, 1) if asks else [], strict=True):
            if own:
                paths[place] = own[0]
    return [partial for partial in paths.values() if partial.steps]


def _prefixes(draft: Partial) -> Sequence[Partial]:
    """The draft after each of its steps."""
    ends = range(1, len(draft.steps))
    return [*(Partial(draft.question, draft.steps[:end]) for end in ends), draft]
