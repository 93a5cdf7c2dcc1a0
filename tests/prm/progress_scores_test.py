"""Scores by value and progress: against a loop, over chunks, and what is refused."""

import types

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.prm.prefix_scores import PrefixScorer
from prm_jax.prm.progress_scores import with_progress
from prm_jax.search.language_model import Partial, Step, step_beam_search


def table(seed, calls=None):
    """A scorer that gives every prefix a value of its own."""

    def values(partials):
        if calls is not None:
            calls.extend(partials)
        return [np.random.default_rng((seed, p.question, *p.tokens)).random() for p in partials]

    return PrefixScorer(values, "probability")


def policy():
    return types.SimpleNamespace(problems=("a", "b"))


def prefixes():
    """Siblings at the first step, children of two of them, and a finished one."""
    first = [Partial(q, ((token,),)) for q in (0, 1) for token in (1, 2, 3)]
    second = [Partial(q, ((1,), (token,)), finished=token == 9) for q in (0, 1) for token in (7, 8, 9)]
    return first, second


def slow(value, prover, k, alpha, partial, siblings):
    """The score of one prefix, by the definition."""
    (own,) = value.values([partial])
    if partial.finished:
        return own

    def proved(p):
        return 1 - (1 - prover.values([p])[0]) ** k

    if len(partial.steps) == 1:
        before = np.mean([proved(p) for p in siblings if p.question == partial.question])
    else:
        before = proved(Partial(partial.question, partial.steps[:-1]))
    return own + alpha * (proved(partial) - before)


@pytest.mark.parametrize(("other", "k"), [(False, 1), (False, 4), (True, 1), (True, 3)])
def test_scores_are_value_plus_progress(other, k):
    value, prover = table(0), table(1 if other else 0)
    score = with_progress(value, policy(), alpha=0.5, prover=prover if other else None, best_of=k)
    first, second = prefixes()
    for partials in (first, second):
        expected = [slow(value, prover, k, 0.5, p, first) for p in partials]
        np.testing.assert_allclose(score(partials), expected, atol=1e-6)


def test_parents_are_scored_once_and_values_of_other_problems_are_forgotten():
    calls, place = [], policy()
    score = with_progress(table(0, calls), place, alpha=1.0)
    first, second = prefixes()
    score(first)
    score(second)
    assert calls == [*first, *second], "parents are known"
    place.problems = ("c", "d")
    del calls[:]
    score(second)
    assert [*second] == calls[:6] and {p.steps for p in calls[6:]} == {((1,),)}, "unknown parents are scored"


def test_a_beam_keeps_steps_that_make_progress():
    """Equal values, unequal progress under the prover: the beam follows the progress."""

    def propose(asks, count, whole):
        return [
            [Step((len(a.partial.steps) * 10 + i,), -1.0, len(a.partial.steps) == 2) for i in range(count)]
            for a in asks
        ]

    flat = PrefixScorer(lambda partials: [0.5] * len(partials), "probability")
    odd = PrefixScorer(lambda partials: [float(p.tokens[-1] % 10 == 1) for p in partials], "probability")
    for scorer, last in ((flat, 0), (with_progress(flat, policy(), alpha=0.3, prover=odd), 1)):
        found = step_beam_search(propose, scorer, 1, beams=1, width=3, max_steps=4)
        assert [step[0] % 10 for step in found.candidates[0][0].partial.steps[:2]] == [last] * 2


@pytest.mark.parametrize("which", ["--scorer", "--prover"])
def test_scores_that_are_no_probabilities_are_refused(which):
    logp = PrefixScorer(lambda partials: [-1.0] * len(partials), "logp")
    value, prover = (logp, table(1)) if which == "--scorer" else (table(0), logp)
    with pytest.raises(UserError, match=f"the scores of {which} are not probabilities"):
        with_progress(value, policy(), alpha=1.0, prover=prover)
