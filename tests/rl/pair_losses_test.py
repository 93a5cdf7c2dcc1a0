"""Losses on pairs: values that TRL gives for the same log-probabilities, limits, and what each gradient moves."""

import jax
import numpy as np
import pytest

from prm_jax import rl as plain
from tests.rl import compiled as rl

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
BETA = 0.5
CHOSEN = BETA * (np.array([-10.0, -4.0, -7.5, -3.0]) - np.array([-11.0, -4.25, -7.0, -3.5]))
REJECTED = BETA * (np.array([-12.0, -3.5, -7.5, -9.0]) - np.array([-11.5, -3.0, -8.0, -5.0]))
PAIRS = [np.array([i]) for i in range(4)]


def each(loss, chosen=CHOSEN, rejected=REJECTED, **options):
    return [float(loss(chosen[i], rejected[i], **options).total) for i in PAIRS]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [  # DPOTrainer.dpo_loss of TRL 0.19.1, with loss_type robust, exo_pair, apo_zero and apo_down
        ("robust_pairwise_loss", {"label_smoothing": 0.1}, [0.29312101, 0.47624823, 1.03657699, -0.18104346]),
        ("exo_loss", {"label_smoothing": 1e-3}, [1.58934748, 2.13847923, 3.63732767, 0.34481302]),
        ("exo_loss", {"label_smoothing": 0.1}, [0.18278998, 0.32449019, 0.81019622, 0.00012185]),
        ("apo_loss", {"kind": "zero"}, [0.81536412, 0.90661407, 1.12435293, 0.55702639]),
        ("apo_loss", {"kind": "down"}, [0.94328064, 0.93854278, 1.06028283, 0.65752602]),
    ],
)
def test_values_of_trl(name, options, expected):
    np.testing.assert_allclose(each(getattr(rl, name), **options), expected, **CLOSE)


def test_odds_ratio_values_of_trl():
    """ORPOTrainer.odds_ratio_loss of TRL 0.19.1 with beta 0.1, printed with four digits."""
    chosen, rejected = np.array([-0.5, -1.25, -0.75, -2.0]), np.array([-0.75, -1.0, -0.75, -3.0])
    ratio = each(rl.orpo_loss, chosen, rejected, sft_coef=0.0)
    np.testing.assert_allclose(ratio, [0.0458, 0.0896, 0.0693, 0.0289], atol=6e-5)
    both = each(rl.orpo_loss, chosen, rejected)
    np.testing.assert_allclose(both, np.array(ratio) - chosen, **CLOSE)
    log_odds = rl.orpo_loss(chosen, rejected).summary()["log_odds"]
    np.testing.assert_allclose(log_odds, 0.3167, atol=6e-5)


def test_robust_loss_is_unbiased_under_flipped_labels():
    e = 0.2
    kept, flipped = (np.array(each(rl.robust_pairwise_loss, *x, label_smoothing=e))
                     for x in ((CHOSEN, REJECTED), (REJECTED, CHOSEN)))  # fmt: skip
    np.testing.assert_allclose((1 - e) * kept + e * flipped, each(rl.pairwise_loss), **CLOSE)
    np.testing.assert_allclose(each(rl.robust_pairwise_loss, label_smoothing=0.0), each(rl.pairwise_loss), **CLOSE)


def test_exo_is_zero_at_the_smoothed_label_only():
    e = 0.05
    gap = np.log((1 - e) / e)
    at, off = (float(rl.exo_loss(np.array([g]), np.zeros(1), label_smoothing=e).total) for g in (gap, gap + 0.5))
    assert abs(at) < 1e-6 < 1e-3 < off


@pytest.mark.parametrize(("kind", "chosen", "rejected"), [("zero", -1, 1), ("down", 1, 1)])
def test_apo_moves_scores_as_its_name_says(kind, chosen, rejected):
    """Signs of the gradients at two equal scores: "zero" raises the chosen one, "down" lowers both."""
    score = np.full(1, 0.0), np.full(1, -2.0)
    gradient = jax.grad(lambda x: plain.apo_loss(x[0], x[1], kind=kind).total)(score)
    assert np.sign(gradient[0][0]) == chosen and np.sign(gradient[1][0]) == rejected


@pytest.mark.parametrize("far", [0.0, -1e-9, -100.0])
def test_odds_stay_finite_at_the_ends(far):
    value, gradient = jax.value_and_grad(lambda x: plain.orpo_loss(x, np.full(1, -1.0)).total)(np.full(1, far))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_bad_input():
    with pytest.raises(ValueError, match="label_smoothing=0.5"):
        rl.robust_pairwise_loss(CHOSEN, REJECTED, label_smoothing=0.5)
    with pytest.raises(ValueError, match="label_smoothing=0.0; expected a number in"):
        rl.exo_loss(CHOSEN, REJECTED, label_smoothing=0.0)
    with pytest.raises(ValueError, match="kind='up'"):
        rl.apo_loss(CHOSEN, REJECTED, kind="up")
