"""Searches over steps with a made-up model: letters whose right continuation is known."""

import pathlib

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.search import language_model as lm

RIGHT = ((1, 2), (3,), (4, 9))  # of every question; 9 ends a solution
DEPTH = len(RIGHT)


def propose(asks, count, whole):
    """The right step among wrong ones and duplicates; drawn by question, place and stream only."""
    answers = []
    for partial, stream in asks:
        rng = np.random.default_rng([partial.question, len(partial.steps), stream])
        steps = []
        for _ in range(count):
            place, tokens = len(partial.steps), ()
            while place < DEPTH:
                right = rng.random() < 0.6
                tokens += RIGHT[place] if right else (7, *RIGHT[place][1:])
                place += 1
                if not whole:
                    break
            steps.append(lm.Step(tokens, -0.5 * len(tokens), place == DEPTH))
        answers.append(steps)
    return answers


def score(partials):
    """1 less the share of wrong tokens, whatever the steps are."""
    return [1.0 - partial.tokens.count(7) / 3 for partial in partials]


SEARCHES = {
    "sample": lambda p=propose, v=score: lm.sample_search(p, v, 3, samples=16),
    "beam": lambda p=propose, v=score: lm.beam_search(p, v, 3, beams=4, width=4, max_steps=5),
    "dvts": lambda p=propose, v=score: lm.beam_search(p, v, 3, beams=4, width=4, trees=4, max_steps=5),
    "step beam": lambda p=propose, v=score: lm.step_beam_search(p, v, 3, beams=2, width=4, max_steps=5),
    "look ahead": lambda p=propose, v=score: lm.look_ahead_search(p, v, 3, beams=2, width=4, horizon=2, max_steps=5),
    "gated": lambda p=propose, v=score: lm.gated_search(p, v, 3, samples=16, max_steps=5, threshold=0.9),
    "tree": lambda p=propose, v=score: lm.tree_search(p, v, 3, simulations=8, width=4, max_steps=5)[0],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_finds_the_solution(name):
    found = SEARCHES[name]()
    for own in found.candidates:
        assert own[0].score == 1.0 and own[0].partial.tokens == (1, 2, 3, 4, 9) and own[0].partial.finished
        assert [c.score for c in own] == sorted([c.score for c in own], reverse=True)
        if name not in ("sample", "dvts", "gated"):  # independent ones may find the same
            assert len({c.partial.steps for c in own}) == len(own)  # no solution twice
    assert np.all(found.tokens >= found.proposals) and np.all(found.proposals >= found.scored)
    again = SEARCHES[name]()
    assert again.candidates == found.candidates


@pytest.mark.parametrize("name", SEARCHES)
def test_no_two_requests_of_a_question_share_random_numbers(name):
    seen = []

    def watched(asks, count, whole):
        seen.extend((ask.partial.question, ask.stream) for ask in asks)
        return propose(asks, count, whole)

    SEARCHES[name](p=watched)
    assert len(set(seen)) == len(seen) and min(stream for _, stream in seen) >= 0


@pytest.mark.parametrize("name", SEARCHES)
def test_nothing_proposed_and_everything_finished(name):
    found = SEARCHES[name](p=lambda asks, count, whole: [[] for _ in asks])
    assert found.candidates == ((), (), ()) and found.tokens.sum() == 0
    empty = SEARCHES[name](p=lambda asks, count, whole: [[lm.Step((), 0.0, True)] * count for _ in asks])
    assert empty.candidates == ((), (), ())  # a step without tokens is no step
    at_once = SEARCHES[name](p=lambda asks, count, whole: [[lm.Step((8,), -0.1, True)] * count for _ in asks])
    for b, own in enumerate(at_once.candidates):
        assert own and {c.partial for c in own} == {lm.Partial(b, ((8,),), -0.1, True)}


def test_the_beam_keeps_its_places():
    """B1 = 2: a finished solution takes its place along, so no question ends with more than two."""
    found = SEARCHES["step beam"]()
    assert all(len(own) == 2 for own in found.candidates)
    np.testing.assert_array_equal(found.proposals, 8 + 2 * 4 * (DEPTH - 1))


def test_what_is_not_finished_in_time():
    for search in (lm.step_beam_search, lm.beam_search):
        found = search(propose, score, 2, beams=2, width=4, max_steps=2)
        for own in found.candidates:
            assert own and not any(c.partial.finished for c in own)


def test_the_tree_knows_its_text():
    found, tree, nodes = lm.tree_search(propose, score, 2, simulations=6, width=4, max_steps=4)
    for b, own in enumerate(nodes):
        assert sorted(own) == np.flatnonzero(tree.valid[b]).tolist()
        for slot, partial in own.items():
            assert len(partial.steps) == int(tree.depth[b, slot])
            if slot:
                assert partial.steps[:-1] == own[int(tree.parent[b, slot])].steps
    assert all(c.partial.finished for own in found.candidates for c in own)


def test_bad_answers():
    with pytest.raises(UserError, match="nan for question 0, a prefix of 1 steps"):
        SEARCHES["tree"](v=lambda partials: [float("nan")] * len(partials))
    with pytest.raises(UserError, match="inf for question 0"):
        SEARCHES["gated"](v=lambda partials: [float("inf")] * len(partials))
    with pytest.raises(ValueError, match=r"shape \(1,\) for \d+ prefixes; expected \(\d+,\)"):
        SEARCHES["beam"](v=lambda partials: [0.5])
    with pytest.raises(ValueError, match=r"shape \(\d+, 2\) for \d+ prefixes"):
        SEARCHES["look ahead"](v=lambda partials: np.zeros((len(partials), 2)))
    with pytest.raises(ValueError, match="at most 16 steps"):
        SEARCHES["sample"](p=lambda asks, count, whole: propose(asks, count + 1, whole))
    with pytest.raises(ValueError, match="multiple of trees"):
        lm.beam_search(propose, score, 1, beams=3, width=2, trees=2, max_steps=2)
    for call, words in (
        (lambda: lm.sample_search(propose, score, 1, samples=0), "samples=0"),
        (lambda: lm.step_beam_search(propose, score, 1, beams=0, width=0, max_steps=2), "beams=0 and width=0"),
        (lambda: lm.look_ahead_search(propose, score, 1, beams=0, max_steps=2), "beams=0"),
        (lambda: lm.look_ahead_search(propose, score, 1, width=0, max_steps=2), "width=0"),
        (lambda: lm.look_ahead_search(propose, score, 1, horizon=-1, max_steps=2), "horizon=-1"),
        (lambda: lm.gated_search(propose, score, 1, samples=0, max_steps=2), "samples=0"),
        (lambda: lm.gated_search(propose, score, 1, samples=2, max_steps=0), "max_steps=0"),
    ):
        with pytest.raises(ValueError, match=words + ": expected"):
            call()


def enumerated(asks, count, whole):
    """Steps 1, 2, ... after every prefix, three of which are a solution."""
    return [[lm.Step((i + 1,), -1.0, len(ask.partial.steps) == 2) for i in range(count)] for ask in asks]


def hashed(partials):
    return [np.random.default_rng([len(p.tokens), *p.tokens]).random() for p in partials]


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_look_ahead_by_hand(horizon):
    found = lm.look_ahead_search(enumerated, hashed, 1, beams=1, width=4, horizon=horizon, alpha=0.3, max_steps=5)
    prefix = ()
    while len(prefix) < 3:
        worth = {}
        for step in range(1, 5):
            after = [(*prefix, step) + (1,) * ahead for ahead in range(horizon + 1)]
            scores = hashed([lm.Partial(0, (tokens,)) for tokens in after if len(tokens) <= 3])
            value = scores[-1]
            for own in scores[-2::-1]:
                value = own + 0.3 * (value - own)
            worth[step] = value
        prefix += (max(worth, key=worth.get),)
    (best,) = found.candidates[0]
    assert best.partial.tokens == prefix and best.partial.finished
    np.testing.assert_allclose(best.score, worth[prefix[-1]], rtol=1e-6)
    ahead = sum(4 * min(horizon, 2 - step) for step in range(3))
    assert found.proposals[0] == 12 + ahead == found.scored[0]


def test_look_ahead_of_nothing_is_the_step_beam():
    beam = lm.step_beam_search(propose, score, 3, beams=2, width=3, max_steps=5)
    ahead = lm.look_ahead_search(propose, score, 3, beams=2, width=3, horizon=0, max_steps=5)
    assert beam.candidates == ahead.candidates and np.array_equal(beam.tokens, ahead.tokens)


def test_gates_stop_what_is_not_promising():
    """Each sample costs a step until its first wrong one; those that remain are whole and right."""
    found = lm.gated_search(propose, score, 4, samples=8, max_steps=5, threshold=0.9)
    for b in range(4):
        lengths, kept = [], 0
        for i in range(8):
            partial, alive = lm.Partial(b), True
            while alive and not partial.finished:
                number = len(partial.steps)
                ask = lm.Ask(partial, number * 8 + i if number else 0)
                partial = partial.then(propose([ask], 1 if number else 8, False)[0][0 if number else i])
                alive = score([partial])[0] > 0.9
            lengths.append(len(partial.steps))
            kept += alive
        if kept:
            assert found.proposals[b] == sum(lengths) and len(found.candidates[b]) == kept
            assert all(c.score == 1.0 and c.partial.finished for c in found.candidates[b])


def test_gates_from_a_later_step_and_another_last_word():
    last = lm.gated_search(
        propose, lambda partials: [0.0] * len(partials), 2, samples=6, max_steps=5, threshold=-1.0,
        ready=lambda partial: len(partial.steps) >= DEPTH, final=score,
    )  # fmt: skip
    for own in last.candidates:
        assert len(own) == 6
        np.testing.assert_allclose([c.score for c in own], sorted(score([c.partial for c in own]))[::-1], rtol=1e-6)
    np.testing.assert_array_equal(last.scored, 12)  # at the last step, and in the end


def test_where_no_sample_remains_the_most_promising_is_written_to_its_end():
    found = lm.gated_search(propose, score, 3, samples=6, max_steps=5, threshold=1.0)
    for own in found.candidates:
        (only,) = own
        assert only.partial.finished and only.partial.tokens[:2] == RIGHT[0] and len(only.partial.steps) == 2
        assert only.score == score([only.partial])[0]


def test_the_example_of_a_search_rule_of_ones_own():
    from examples.search_rule import patient

    found = patient(propose, score, 3, width=2, max_steps=5, enough=1.0)
    for own in found.candidates:
        assert len(own) == 1 and own[0].score == 1.0 and own[0].partial.tokens == (1, 2, 3, 4, 9)
    assert (found.proposals >= 2 * DEPTH).all() and (found.proposals <= 2 * 5 * DEPTH).all()
    text = (pathlib.Path(__file__).resolve().parents[2] / "examples" / "search_rule.py").read_text()
    assert len(text.splitlines()) <= 25
