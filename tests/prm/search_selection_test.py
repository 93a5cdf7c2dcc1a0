"""Answers to trust: the bound on wrong ones in simulation, and what is refused."""

import json

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.prm.search_selection import read_known, trusted_answers


def results(rng, count, name, informative="score"):
    """Searches of which one half is right; one of the two scorers knows which, the other is noise."""
    right = rng.random(count) < 0.5
    known, noise = right + 0.4 * rng.standard_normal(count), rng.random(count)
    score, agreement = (known, noise) if informative == "score" else (noise, known)
    columns = {"correct": right.astype(float), "score": score, "agreement": agreement}
    told = [{key: float(values[i]) for key, values in columns.items()} for i in range(count)]
    return [{"id": f"{name}{i}", "answer": "1", **one} for i, one in enumerate(told)]


@pytest.mark.parametrize("informative", ["score", "agreement"])
def test_few_of_the_trusted_answers_are_wrong_whichever_scorer_knows(informative):
    rng = np.random.default_rng(3)
    shares, counts = [], []
    for _ in range(40):
        known, lines = results(rng, 60, "known", informative), results(rng, 40, "test", informative)
        found = trusted_answers(lines, known, level=0.25, seed=1)
        right = {line["id"]: line["correct"] for line in lines}
        wrong = [1 - right[one["id"]] for one in found["trusted"]]
        assert found["false_share"] == pytest.approx(np.mean(wrong) if wrong else 0.0)
        shares.append(found["false_share"])
        counts.append(len(found["trusted"]))
    assert np.mean(shares) <= 0.25 and np.mean(counts) > 5
    assert {one["by"] for one in found["trusted"]} <= {informative}


def test_problems_without_an_answer_are_left_out_and_shared_ones_refused():
    rng = np.random.default_rng(0)
    known, lines = results(rng, 30, "known"), results(rng, 5, "test")
    lines[0] = {**lines[0], "answer": None, "score": None}
    assert trusted_answers(lines, known, level=0.3)["candidates"] == 4
    with pytest.raises(UserError, match="has 5 of the same problems, such as 'known0'"):
        trusted_answers(known[:5], known, level=0.3)
    with pytest.raises(UserError, match="found 9 and 5"):
        trusted_answers(results(rng, 5, "test"), known[:9], level=0.3)


def test_a_file_that_is_no_search_is_refused(tmp_path):
    path = tmp_path / "known.jsonl"
    with pytest.raises(UserError, match="cannot read results of a search"):
        read_known(path)
    path.write_text(json.dumps({"settings": {}}) + "\n" + json.dumps({"id": "a", "correct": 1.0}) + "\n")
    with pytest.raises(UserError, match="does not hold what prm-jax search --out writes"):
        read_known(path)
