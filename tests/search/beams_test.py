"""Flat searches: published cases, plain Python beside them, and what happens without candidates."""

import functools
import itertools

import jax
import numpy as np
import pytest

from prm_jax import rl
from prm_jax import search as s
from tests.search.golden import load

step_beam = jax.jit(s.step_beam)
top_steps = functools.partial(jax.jit, static_argnums=1)(s.top_steps)
vote = functools.partial(jax.jit, static_argnums=2)(s.vote)


def test_published_step_beam():
    """The trace of one search: what is kept, what goes on, how the width falls, and the answer."""
    case = load()["step_beam"]
    beams, width, finals = [0], np.array([case["B1"]]), []
    live = np.array([[True, False]])
    for level, log in zip(case["levels"], case["log"], strict=True):
        score, finished = np.full((1, 2, 4), -np.inf), np.zeros((1, 2, 4), bool)
        for place, beam in enumerate(beams):
            for i, (_, value, end) in enumerate(level.get(str(beam), [])):
                score[0, place, i], finished[0, place, i] = value, end
        out = step_beam(score, live, finished, width)
        kept = [level[str(beams[p])][c] for p, c in zip(out.parent[0], out.choice[0], strict=True) if p >= 0]
        assert [node for node, _, _ in kept] == log["kept"]
        beams = [0 if p < 0 else level[str(beams[p])][c][0] for p, c in zip(out.parent[0], out.choice[0], strict=True)]
        assert [b for b, on in zip(beams, out.live[0], strict=True) if on] == log["live"]
        assert int(out.width[0]) == log["width"]
        finals += [(value, node) for node, value, end in kept if end]
        live, width = out.live, out.width
    assert max(finals)[1] == case["answer"]


def test_step_beam_against_sorting():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 4, (20, 3, 4)).astype(float)  # many ties
    score[rng.random(score.shape) < 0.2] = -np.inf
    live, finished, width = rng.random((20, 3)) < 0.7, rng.random((20, 3, 4)) < 0.3, rng.integers(0, 4, 20)
    out = step_beam(score, live, finished, width)
    for b in range(20):
        pool = [(p, c) for p, c in itertools.product(range(3), range(4)) if live[b, p] and score[b, p, c] > -np.inf]
        kept = sorted(pool, key=lambda pc: -score[b, pc[0], pc[1]])[: width[b]]
        found = [(int(p), int(c)) for p, c in zip(out.parent[b], out.choice[b], strict=True) if p >= 0]
        assert found == kept
        ends = [bool(finished[b, p, c]) for p, c in kept]
        assert out.live[b, : len(kept)].tolist() == [not end for end in ends] and not np.any(out.live[b, len(kept) :])
        assert int(out.width[b]) == width[b] - sum(ends)


def test_top_steps():
    score = np.array([[[1, 3, 3, np.nan], [-np.inf, -np.inf, 2, -np.inf]]])
    assert top_steps(score, 3).tolist() == [[[1, 2, 0], [2, -1, -1]]]
    assert top_steps(score, 1).tolist() == [[[1], [2]]]  # DVTS
    assert top_steps(score.reshape(1, 1, 8), 2).tolist() == [[[1, 2]]]  # a beam
    assert top_steps(score, 5).tolist() == [[[1, 2, 0, -1, -1], [2, -1, -1, -1, -1]]]
    with pytest.raises(ValueError, match="keep must be at least 1"):
        s.top_steps(score, 0)


def test_published_votes():
    case = load()["aggregate"]
    longest = max(map(len, case["scores"]))
    steps = np.array([[*row, *[0.123] * (longest - len(row))] for row in case["scores"]])
    mask = np.arange(longest) < np.array([[len(row)] for row in case["scores"]])
    ids = np.array([["ABC".index(answer) for answer in case["answers"]]])
    for how, expected in case["vote"].items():
        score = rl.aggregate_steps(steps, mask, how=how)[None]
        assert "ABC"[int(vote(score, ids, "weighted")[0])] == expected["winner"]
        assert "ABC"[int(vote(score, ids, "best")[0])] == expected["naive_best"]
    assert "ABC"[int(vote(np.zeros((1, 4)), ids, "majority")[0])] == "A"


def test_votes_without_answers_and_with_ties():
    assert vote(np.zeros((2, 4)), np.array([[7, 3, 3, 7], [-1, -1, -1, -1]]), "majority").tolist() == [7, -1]
    score = np.array([[0.2, 0.9, np.nan, 0.6], [-np.inf] * 4])
    assert vote(score, np.array([[1, 2, 1, 1], [1, 2, 3, 4]]), "weighted").tolist() == [2, -1]
    with pytest.raises(ValueError, match="how='most'"):
        s.vote(score, np.zeros((2, 4), int), "most")


def test_look_ahead_scores():
    """One candidate with two steps to come, one with none, one that does not exist; then the first is best."""
    scores = np.array([[[0.2, 0.8, 0.9], [0.5, 7, 7], [9, 9, 9]]])
    mask = np.array([[[1, 1, 1], [1, 0, 0], [0, 0, 0]]], bool)
    ahead = s.look_ahead_scores(scores, mask)
    np.testing.assert_allclose(ahead[0, :2], [0.525, 0.5], rtol=1e-6)
    assert ahead[0, 2] == -np.inf and int(s.best_of_n(ahead)[0]) == 0
