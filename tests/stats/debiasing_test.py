"""How much of a nuisance is removed from an objective."""

import jax
import numpy as np
import scipy.stats

from tests.stats import compiled as stats


def test_decorrelate_finds_the_share_of_length():
    rng = np.random.default_rng(0)
    length, merit = rng.normal(size=(2, 4000))
    objectives = np.stack([merit + 0.5 * length, merit, merit - length], -1)
    penalties = jax.jit(stats.decorrelate)(np.array(objectives), np.array(length))
    assert abs(float(penalties[0]) - 0.5) < 0.06
    np.testing.assert_allclose(penalties[1:], [0, 0], atol=0.02)
    # The smallest of the grid: one step less still correlates too much.
    for offset, ok in ((0.0, True), (-0.01, False)):
        left = scipy.stats.spearmanr(objectives[:, 0] - (float(penalties[0]) + offset) * length, length)[0]
        assert bool(left <= 0.03) == ok
    hopeless = stats.decorrelate(
        np.array(length[:, None] * 5), np.array(length), grid=np.array([0.0, 0.5])
    )
    np.testing.assert_allclose(hopeless, [0.5])
    masked = stats.decorrelate(
        np.array(np.vstack([objectives, np.full((3, 3), np.nan)])),
        np.append(np.array(length), np.full(3, np.nan)),
        np.arange(4003) < 4000,
    )
    np.testing.assert_allclose(masked, penalties, atol=1e-6)
