"""Searches over steps with a made-up model: letters whose right continuation is known."""

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
    "tree": lambda p=propose, v=score: lm.tree_search(p, v, 3, simulations=8, width=4, max_steps=5)[0],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_finds_the_solution(name):
    found = SEARCHES[name]()
    for own in found.candidates:
        assert own[0].score == 1.0 and own[0].partial.tokens == (1, 2, 3, 4, 9) and own[0].partial.finished
        assert [c.score for c in own] == sorted([c.score for c in own], reverse=True)
        if name not in ("sample", "dvts"):  # independent ones may find the same
            assert len({c.partial.steps for c in own}) == len(own)  # no solution twice
    assert np.all(found.tokens >= found.proposals) and np.all(found.proposals >= found.scored)
    again = SEARCHES[name]()
    assert again.candidates == found.candidates


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
    with pytest.raises(ValueError, match="returned 1 values for"):
        SEARCHES["beam"](v=lambda partials: [0.5])
    with pytest.raises(ValueError, match="at most 16 steps"):
        SEARCHES["sample"](p=lambda asks, count, whole: propose(asks, count + 1, whole))
    with pytest.raises(ValueError, match="multiple of trees"):
        lm.beam_search(propose, score, 1, beams=3, width=2, trees=2, max_steps=2)
