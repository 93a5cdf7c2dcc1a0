"""Searches over the steps of a language model, many questions in lock-step.

Text is token ids here. The caller provides two functions, one that proposes steps and one that scores prefixes, each
called once for all questions; the model may run in this process or on a server.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from prm_jax.search.beams import look_ahead_scores, step_beam, top_steps
from prm_jax.search.evaluation import Expansion
from prm_jax.search.gated import gated_search
from prm_jax.search.growth import ask, grow
from prm_jax.search.method import Method, alphamath
from prm_jax.search.partials import (
    Ask,
    Calls,
    Candidate,
    Found,
    Partial,
    ProposeFn,
    ScorePartials,
    Step,
    Tokens,
    check_counts,
)
from prm_jax.search.refinement import refine_search, refine_step_search
from prm_jax.search.tree import Tree, check_tree, init_tree

__all__ = [
    "Ask",
    "beam_search",
    "confident_search",
    "Candidate",
    "Found",
    "gated_search",
    "look_ahead_search",
    "Partial",
    "ProposeFn",
    "refine_search",
    "refine_step_search",
    "sample_search",
    "ScorePartials",
    "Step",
    "step_beam_search",
    "Tokens",
    "tree_search",
]


def sample_search(propose: ProposeFn, score: ScorePartials, num_questions: int, *, samples: int) -> Found:
    """Whole solutions, each scored once, for best-of-n and votes.

    Args:
      propose: produces solutions.
      score: scores them.
      num_questions: P.
      samples: n per question; duplicates are kept, because votes count them.

    Returns:
      `Found` with n candidates of each question.
    """
    check_counts(samples=samples)
    calls = Calls(propose, score, num_questions)
    found = calls.propose([Ask(Partial(b), 0) for b in range(num_questions)], samples, whole=True, distinct=False)
    flat = [partial for partials in found for partial in partials]
    scores = calls.score(flat)
    return calls.result([Candidate(p, v) for p, v in zip(flat, scores, strict=True)])


def confident_search(
    propose: ProposeFn,
    score: ScorePartials,
    num_questions: int,
    *,
    samples: int,
    pilot: int,
    answers: Callable[[Sequence[Partial]], Sequence[str | None]],
) -> Found:
    """Whole solutions for a vote, more of them where the first ones disagree.

    `pilot` solutions per question give the confidence c, the share of the most frequent answer. Of the other
    ``samples - pilot`` the question gets the share 2 sqrt(c (1 - c)), rounded up: none where all agree, all at 1/2 and
    below.

    Args:
      propose: produces solutions.
      score: scores them.
      num_questions: P.
      samples: maximum number of solutions per question.
      pilot: solutions per question at first, at most `samples`.
      answers: reads the answer of each solution, None for none.

    Returns:
      `Found`.

    Source: the split by confidence of arXiv 2401.05190.
    """
    check_counts(samples=samples, pilot=pilot)
    calls = Calls(propose, score, num_questions)
    first = calls.propose([Ask(Partial(b), 0) for b in range(num_questions)], pilot, whole=True, distinct=False)
    more: dict[int, list[int]] = {}
    for b, own in enumerate(first):
        given = Counter(answer for answer in answers(own) if answer is not None)
        share = max(given.values(), default=0) / max(len(own), 1)
        spread = 1.0 if share <= 0.5 else 2 * math.sqrt(share * (1 - share))
        more.setdefault(math.ceil((samples - pilot) * spread), []).append(b)
    flat = [partial for own in first for partial in own]
    for count, questions in sorted(more.items()):
        if count:
            found = calls.propose([Ask(Partial(b), 1) for b in questions], count, whole=True, distinct=False)
            flat += [partial for own in found for partial in own]
    return calls.result([Candidate(p, v) for p, v in zip(flat, calls.score(flat), strict=True)])


def beam_search(
    propose: ProposeFn,
    score: ScorePartials,
    num_questions: int,
    *,
    beams: int,
    width: int,
    trees: int = 1,
    max_steps: int,
) -> Found:
    """Beam search over steps, or with several trees diverse verifier tree search.

    At every step, each of the live beams gets `width` proposals and each tree keeps its best `beams / trees` of those
    that are not finished. Finished proposals are candidates at once.

    Args:
      propose: produces steps.
      score: scores prefixes.
      num_questions: P.
      beams: N; a multiple of `trees`.
      width: M, proposals per beam.
      trees: G, groups that do not compete; N with one beam each is DVTS.
      max_steps: maximum number of steps of a solution; live ones are then candidates that are not finished.

    Returns:
      `Found`.

    Raises:
      ValueError: `beams` is not a multiple of `trees`, or a number is below 1.

    Source: arXiv 2408.03314 and the released code search-and-learn.
    """
    check_counts(beams=beams, width=width, trees=trees, max_steps=max_steps)
    if beams % trees:
        raise ValueError(f"beams={beams} is not a multiple of trees={trees}")
    keep = beams // trees
    calls = Calls(propose, score, num_questions)
    # Initially all beams are the empty solution, and each tree requests as many proposals as it does later.
    live = {(b, g): [Partial(b)] for b in range(num_questions) for g in range(trees)}
    candidates: list[Candidate] = []
    for number in range(max_steps):
        slots = [(key, partial) for key, partials in live.items() for partial in partials]
        if not slots:
            break
        places = _places(key[0] for key, _ in slots)
        asks = [Ask(partial, number * beams + place) for (_, partial), place in zip(slots, places, strict=True)]
        proposed = calls.propose(asks, keep * width if number == 0 else width)
        pools: dict[tuple[int, int], list[Partial]] = {key: [] for key in live}
        for (key, _), partials in zip(slots, proposed, strict=True):
            pools[key] += partials
        scored = _scored(calls, pools)
        candidates += [one for pool in scored.values() for one in pool if one.partial.finished]
        live = _keep_best({key: [c for c in pool if not c.partial.finished] for key, pool in scored.items()}, keep)
        if number == max_steps - 1:
            rest = {id(p) for partials in live.values() for p in partials}
            candidates += [one for pool in scored.values() for one in pool if id(one.partial) in rest]
    return calls.result(candidates)


def step_beam_search(
    propose: ProposeFn, score: ScorePartials, num_questions: int, *, beams: int, width: int, max_steps: int
) -> Found:
    """AlphaMath's beam search over steps: finished solutions keep their place in the beam.

    Args:
      propose: produces steps.
      score: scores prefixes.
      num_questions: P.
      beams: B1.
      width: B2, proposals per beam; at the first step B1 * B2 from the root.
      max_steps: maximum number of steps of a solution; live ones are then candidates that are not finished.

    Returns:
      `Found`.

    Source: arXiv 2405.03553 and its released code.
    """
    check_counts(beams=beams, width=width, max_steps=max_steps)
    calls = Calls(propose, score, num_questions)
    return _step_beams(calls, lambda _, partials: calls.score(partials), num_questions, beams, width, max_steps)


def look_ahead_search(
    propose: ProposeFn,
    score: ScorePartials,
    num_questions: int,
    *,
    beams: int = 1,
    width: int = 3,
    horizon: int = 3,
    alpha: float = 0.5,
    min_gain: float | None = None,
    max_steps: int,
) -> Found:
    """ReARTeR's search: the value of a step includes the scores of the steps that follow it.

    `step_beam_search` in which every proposed step is followed by up to `horizon` further ones, one sample each, which
    are scored and then discarded; `look_ahead_scores` combines the scores.

    Args:
      propose: produces steps.
      score: scores prefixes.
      num_questions: P.
      beams: number of beams; 1 as published.
      width: proposals per beam.
      horizon: H >= 0, number of steps to look ahead; 0 is `step_beam_search`.
      alpha: weight of later scores, in [0, 1]; see `rl.td_smooth`.
      min_gain: see `rl.td_smooth`.
      max_steps: maximum number of steps of a solution, including those looked ahead.

    Returns:
      `Found`; a candidate's score is the look-ahead score with which it was kept.

    Source: arXiv 2501.07861.
    """
    check_counts(beams=beams, width=width, max_steps=max_steps)
    if horizon < 0:
        raise ValueError(f"horizon={horizon}: expected at least 0")
    calls = Calls(propose, score, num_questions)

    def values(number: int, partials: Sequence[Partial]) -> list[float]:
        scores, mask = np.zeros((2, len(partials), horizon + 1))
        scores[:, 0], mask[:, 0] = calls.score(partials), 1
        # The number of a request encodes the step, the distance ahead, and the candidate's place in its question.
        places, counts = [], Counter[int]()
        for partial in partials:
            places.append(counts[partial.question])
            counts[partial.question] += 1
        going = dict(enumerate(partials))
        for ahead in range(min(horizon, max_steps - 1 - number)):
            going = {i: partial for i, partial in going.items() if not partial.finished}
            first = max_steps * beams + (number * horizon + ahead) * beams * width
            found = calls.propose([Ask(p, first + places[i]) for i, p in going.items()], 1) if going else []
            going = {i: own[0] for i, own in zip(going, found, strict=True) if own}
            for i, value in zip(going, calls.score(list(going.values())), strict=True):
                scores[i, ahead + 1], mask[i, ahead + 1] = value, 1
        size = 1 << max(len(partials) - 1, 0).bit_length()  # few shapes, so few compilations
        padded = [np.pad(x, ((0, size - len(partials)), (0, 0))) for x in (scores, mask)]
        return np.asarray(_look_ahead(*padded, alpha=alpha, min_gain=min_gain))[: len(partials)].tolist()

    return _step_beams(calls, values, num_questions, beams, width, max_steps)


def _step_beams(
    calls: Calls,
    values_of: Callable[[int, Sequence[Partial]], list[float]],
    num_questions: int,
    beams: int,
    width: int,
    max_steps: int,
) -> Found:
    """`step_beam_search`; `values_of` gets the number of the step and all its proposals."""
    live: list[list[Partial | None]] = [[Partial(b)] + [None] * (beams - 1) for b in range(num_questions)]
    widths = np.full(num_questions, beams, np.int32)
    candidates: list[Candidate] = []
    children = beams * width
    for number in range(max_steps):
        slots = [(b, m, p) for b, row in enumerate(live) for m, p in enumerate(row) if p is not None]
        if not slots:
            break
        asks = [Ask(partial, number * beams + m) for _, m, partial in slots]
        proposed = calls.propose(asks, children if number == 0 else width)
        values = iter(values_of(number, [partial for partials in proposed for partial in partials]))
        scores = np.full((num_questions, beams, children), -np.inf, np.float32)
        ends = np.zeros(scores.shape, bool)
        for (b, m, _), partials in zip(slots, proposed, strict=True):
            for i, partial in enumerate(partials):
                scores[b, m, i], ends[b, m, i] = next(values), partial.finished
        if number == max_steps - 1:
            ends[:] = True
        at = {(b, m): partials for (b, m, _), partials in zip(slots, proposed, strict=True)}
        going = np.array([[p is not None for p in row] for row in live])
        kept = jax.tree.map(np.asarray, _step_beam(scores, going, ends, widths))
        live = [[None] * beams for _ in range(num_questions)]
        for b, place in np.argwhere(kept.parent >= 0).tolist():
            m, i = kept.parent[b, place], kept.choice[b, place]
            if kept.live[b, place]:
                live[b][place] = at[b, m][i]
            else:
                candidates.append(Candidate(at[b, m][i], float(scores[b, m, i])))
        widths = kept.width
    return calls.result(candidates)


def tree_search(
    propose: ProposeFn,
    score: ScorePartials,
    num_questions: int,
    *,
    simulations: int,
    width: int,
    max_steps: int,
    method: Callable[[int, int], Method] = alphamath,
    on_simulation: Callable[[int], None] | None = None,
) -> tuple[Found, Tree, list[dict[int, Partial]]]:
    """Monte-Carlo tree search over steps.

    The prior of a step is exp(mean log-probability of its tokens). Candidates are the finished solutions in the tree.

    Args:
      propose: produces steps.
      score: scores prefixes, in [-1, 1] or [0, 1].
      num_questions: P.
      simulations: per question.
      width: C, proposals for each leaf.
      max_steps: depth of the tree.
      method: makes the constants of the search from width and depth: `alphamath`, `rest_mcts`, or a function that
        returns a `Method` with one leaf per question.
      on_simulation: called with the number of completed simulations.

    Returns:
      (`Found`, the tree, for each question the prefix of every node by its slot).
    """
    check_counts(num_questions=num_questions, simulations=simulations, width=width, max_steps=max_steps)
    constants = method(width, max_steps)
    if constants.leaves is not None:
        raise ValueError("with a language model one leaf per question is selected at a time: leave `leaves` out")
    calls = Calls(propose, score, num_questions)
    tree = init_tree(num_questions, 1 + simulations * width)
    nodes: list[dict[int, Partial]] = [{0: Partial(b)} for b in range(num_questions)]
    for number in range(simulations):
        selection, leaf = _ask(tree, constants, number)
        # No two simulations expand the same slot, so it distinguishes the requests of a question.
        leaves = np.asarray(leaf.node)
        asks = [Ask(nodes[b][int(leaves[b])], int(leaves[b])) for b in np.flatnonzero(np.asarray(leaf.ok)).tolist()]
        proposed = calls.propose(asks, width) if asks else []
        expansion = _expansion(calls, num_questions, width, asks, proposed)
        tree, kids = _grow(tree, selection, expansion, constants)
        kids = np.asarray(kids)
        for (parent, _), partials in zip(asks, proposed, strict=True):
            b = parent.question
            nodes[b].update({int(kids[b, i]): p for i, p in enumerate(partials) if kids[b, i] >= 0})
        if on_simulation is not None:
            on_simulation(number + 1)
    check_tree(tree)
    value = np.asarray(tree.value)
    ends = [Candidate(p, float(value[b, n])) for b, own in enumerate(nodes) for n, p in own.items() if p.finished]
    return calls.result(ends), tree, nodes


def _expansion(
    calls: Calls, num_questions: int, width: int, asks: Sequence[Ask], proposed: Sequence[Sequence[Partial]]
) -> Expansion:
    """The proposals for each request as an evaluator's answer, with their scores."""
    prior, value = np.zeros((2, num_questions, width), np.float32)
    terminal, valid = np.zeros((2, num_questions, width), bool)
    scores = iter(calls.score([partial for partials in proposed for partial in partials]))
    for (parent, _), partials in zip(asks, proposed, strict=True):
        b = parent.question
        for i, partial in enumerate(partials):
            prior[b, i] = math.exp((partial.logp - parent.logp) / len(partial.steps[-1]))
            value[b, i], terminal[b, i], valid[b, i] = next(scores), partial.finished, True
    return Expansion(prior, value, terminal, valid)


_step_beam, _top_steps = jax.jit(step_beam), jax.jit(top_steps, static_argnums=1)
_look_ahead = functools.partial(jax.jit, static_argnames=("alpha", "min_gain"))(look_ahead_scores)
_ask, _grow = jax.jit(ask, static_argnames="method"), jax.jit(grow, static_argnames="method")


def _places(questions: Iterable[int]) -> Iterator[int]:
    """The number of each request among those of its question."""
    seen = Counter[int]()
    for question in questions:
        yield seen[question]
        seen[question] += 1


def _scored(
    calls: Calls, pools: dict[tuple[int, int], list[Partial]]
) -> dict[tuple[int, int], list[Candidate]]:
    values = iter(calls.score([partial for pool in pools.values() for partial in pool]))
    return {key: [Candidate(partial, next(values)) for partial in pool] for key, pool in pools.items()}


def _keep_best(pools: dict[tuple[int, int], list[Candidate]], keep: int) -> dict[tuple[int, int], list[Partial]]:
    """The best of each tree's pool."""
    size = max(map(len, pools.values()), default=0)
    if size == 0:
        return {}
    size = 1 << (size - 1).bit_length()  # few shapes, so few compilations
    scores = np.full((1, len(pools), size), -np.inf, np.float32)
    for row, pool in zip(scores[0], pools.values(), strict=True):
        row[: len(pool)] = [one.score for one in pool]
    best = np.asarray(_top_steps(scores, keep))[0]
    kept = {key: [pool[i].partial for i in row if i >= 0] for (key, pool), row in zip(pools.items(), best, strict=True)}
    return {key: partials for key, partials in kept.items() if partials}
