"""PARM's choice: the published cases, a loop that stops candidates, and its two limits."""

import jax
import numpy as np
import pytest

from tests.rl import golden
from tests.stats import compiled as stats


def slow(ready, potential, final, mask, threshold=0.5):
    """One question: walks down every candidate and stops at the first "no"."""
    kept, spent, hope = [], [], []
    for n in range(len(mask)):
        judging, last, alive, used = False, None, True, 0
        for k in np.flatnonzero(mask[n]):
            if not alive:
                break
            used += 1
            judging = judging or bool(ready[n, k])
            if judging:
                last = potential[n, k]
                alive = last > threshold
        kept.append(last is not None and alive)
        spent.append(used)
        hope.append(-np.inf if not mask[n].any() else 0.0 if last is None else last)
    if any(kept):
        choice = int(np.argmax(np.where(kept, final, -np.inf)))
    else:
        choice = int(np.argmax(hope)) if np.isfinite(hope).any() else -1
    return choice, kept, spent


@pytest.mark.parametrize("case", range(2))
def test_published_choices(case):
    given = golden.load("values")["parm"]["cases"][case]
    no, final = np.array(given["p_no"]), np.array(given["orm"])
    judged = no < 1.0  # a path that was never judged has P(no) = 1 in the published code
    found = stats.gated_selection(judged[:, None], 1 - no[:, None], final, np.ones((3, 1), bool))
    np.testing.assert_array_equal(found.kept, np.array(given["keep"]) == 1)
    assert found.choice == given["pick"]


def test_matches_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(40):
        n, s = 4, 5
        mask = np.arange(s) < rng.integers(0, s + 1, (n, 1))
        ready, potential = rng.uniform(size=(n, s)) < 0.4, rng.uniform(0.3, 1, size=(n, s))
        final = rng.normal(size=n)
        choice, kept, spent = slow(ready, potential, final, mask)
        dirty = np.where(mask, potential, np.nan)
        found = stats.gated_selection(ready, dirty, np.where(kept, final, np.nan), mask)
        assert found.choice == choice
        np.testing.assert_array_equal(found.kept, kept)
        np.testing.assert_array_equal(found.steps, spent)


def test_limits():
    rng = np.random.default_rng(1)
    final, mask = rng.normal(size=(3, 6)), np.ones((3, 6, 2), bool)
    promising = rng.uniform(0.6, 1, size=(3, 6, 2))
    best_of_n = jax.jit(stats.gated_selection)(mask, promising, final, mask)
    np.testing.assert_array_equal(best_of_n.choice, final.argmax(-1))
    hopeless = rng.uniform(0, 0.4, size=(3, 6, 2))
    least_bad = stats.gated_selection(mask, hopeless, final, mask)
    np.testing.assert_array_equal(least_bad.choice, hopeless[..., 0].argmax(-1))  # stopped at the first judgement
    np.testing.assert_array_equal(least_bad.steps, np.ones((3, 6)))
    assert stats.gated_selection(mask[0], hopeless[0], final[0], np.zeros((6, 2), bool)).choice == -1
