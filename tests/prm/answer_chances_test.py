"""Chances of a search's answers: against a plain loop, calibrated in simulation, and what is refused."""

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.prm.answer_chances import chances_row, check_known, with_chances
from tests.prm.search_selection_test import results

KNOWN = 24
"""Known answers, as many in all tests: each number of them is a compilation."""


def fitted(scores, labels, score, label):
    """The isotonic fit at `score`, max over j <= i of min over k >= i of the mean label of the scores j to k."""
    scores, labels = [*scores, score], [*labels, label]
    knots = sorted(set(scores))
    own = [[label for one, label in zip(scores, labels, strict=True) if one == knot] for knot in knots]
    i = knots.index(score)
    return max(min(np.mean(sum(own[j : k + 1], [])) for k in range(i, len(knots))) for j in range(i + 1))


def test_each_answer_joins_the_known_ones_once_as_wrong_and_once_as_right():
    """With tied values, an answer twice, and a problem without an answer on both sides."""
    rng = np.random.default_rng(0)
    known, lines = results(rng, KNOWN + 1, "known"), results(rng, 5, "test")
    for line in (*known, *lines):
        line["agreement"] = round(4 * line["agreement"]) / 4
    lines[1] = {**lines[0], "id": "twice"}
    known[3] = {**known[3], "answer": None, "score": None}
    lines[2] = {**lines[2], "answer": None, "score": None}
    found = with_chances(lines, known, ("score", "agreement"))
    assert [{key: line[key] for key in lines[0]} for line in found] == lines
    used = [line for line in known if line["answer"] is not None]
    for line in found:
        if line["answer"] is None:
            assert line["chance"] is None and line["venn_abers"] is None
            continue
        chances = []
        for name in ("score", "agreement"):
            values, labels = ([one[key] for one in used] for key in (name, "correct"))
            lower, upper = (fitted(values, labels, line[name], label) for label in (0.0, 1.0))
            chances.append(upper / (1 - lower + upper))
            np.testing.assert_allclose(line["venn_abers"][name]["interval"], [lower, upper], atol=1e-5)
            np.testing.assert_allclose(line["venn_abers"][name]["chance"], chances[-1], atol=1e-5)
        np.testing.assert_allclose(line["chance"], np.mean(chances), atol=1e-5)
    expected = sum(line["chance"] or 0 for line in found) / 5
    assert f"{expected:.4f}, from intervals 0." in chances_row(found)


def test_chances_of_a_score_that_knows_tell_right_from_wrong():
    """More than a block of them, whose mean is the accuracy."""
    rng = np.random.default_rng(1)
    known, lines = results(rng, KNOWN, "known"), results(rng, 150, "test")
    found = with_chances(lines, known, ("score",))
    chance, right = (np.asarray([line[key] for line in found]) for key in ("chance", "correct"))
    assert np.mean(right[chance > 0.8]) > 0.85 and np.mean(right[chance < 0.2]) < 0.15
    assert abs(chance.mean() - right.mean()) < 0.1
    assert np.mean((chance - right) ** 2) < 0.15  # 0.25 for a constant


def test_answers_that_cannot_calibrate_are_refused():
    known = results(np.random.default_rng(0), 30, "known")
    with pytest.raises(UserError, match="10 to 2000 answers in --calibration, found 9"):
        check_known(known[:9])
    for line in known[:3]:
        line["answer"] = None
    with pytest.raises(UserError, match="found 9"):
        check_known(known[:12])
    for correct, word in ((1.0, "right"), (0.0, "wrong")):
        with pytest.raises(UserError, match=f"all 27 are {word}"):
            check_known([{**line, "correct": correct} for line in known])
    check_known(known)
