"""BEER's penalty: golden numbers, the bound that Bellman's equation implies, masks and gradients."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "values.json").read_text())["beer"]


def rows(*names):
    return (np.array([GOLDEN[n]]) for n in names)


def test_golden_both_forms():
    g = GOLDEN
    phi, online, target = rows("phi", "phi_next", "phi_tgt")
    head = np.array(g["w"])
    common = dict(discount=g["gamma"])
    # With head * large the reward term vanishes less; penalties of the block are 0, so compare cos - bound by
    # moving the reward until the hinge opens: the excess grows by r^2 / (|w|^2 2 gamma |phi| |phi'|).
    for form, nxt in (("paper", online), ("released", target)):
        extra = dict(form=form, online_next_features=online) if form == "released" else {}
        zero = rl.bellman_rank_penalty(phi, nxt, np.array([g["reward"]]), head, **common, **extra)
        assert float(zero.total) == g["penalty_paper" if form == "paper" else "penalty_code"] == 0
        scale = 2 * g["gamma"] * np.linalg.norm(g["phi"]) * np.linalg.norm(np.array(nxt))
        reward = 3.0
        name = "paper" if form == "paper" else "code"
        shift = (reward**2 - g["reward"] ** 2) / (np.square(g["w"]).sum() * scale)
        expected = g[f"cos_{name}"] - (g[f"bound_{name}"] - shift)
        out = rl.bellman_rank_penalty(phi, nxt, np.array([reward]), head, **common, **extra)
        np.testing.assert_allclose(out.total, expected, rtol=1e-5)
    large = rl.bellman_rank_penalty(phi, online, np.array([g["large_reward"]["reward"]]), head, **common)
    np.testing.assert_allclose(large.total, g["large_reward"]["penalty"], rtol=1e-5)


def test_forms_differ():
    phi, online, target = rows("phi", "phi_next", "phi_tgt")
    head, reward = np.array(GOLDEN["w"]), np.array([3.0])
    paper = rl.bellman_rank_penalty(phi, target, reward, head, discount=0.99)
    released = rl.bellman_rank_penalty(
        phi, target, reward, head, discount=0.99, form="released", online_next_features=online
    )
    assert abs(float(paper.total - released.total)) > 1e-3
    with pytest.raises(ValueError, match="online_next_features"):
        rl.bellman_rank_penalty(phi, target, reward, head, discount=0.99, form="released")


def test_zero_wherever_bellman_holds():
    rng = np.random.default_rng(0)
    phi, nxt, head = rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8)), rng.normal(size=8)
    phi[:50] = nxt[:50]  # alike features are allowed where the reward says so
    reward = (phi - 0.9 * nxt) @ head
    loss = rl.bellman_rank_penalty(*map(np.array, (phi, nxt, reward, head)), discount=0.9)
    assert float(loss.total) < 2e-3  # 2000 float32 cosines, the equality cases among them


def test_hand_cases():
    head = np.array([1.0, 0.0])
    same = rl.bellman_rank_penalty(np.array([[1.0, 0]]), np.array([[1.0, 0]]), np.array([2.0]), head, discount=1.0)
    np.testing.assert_allclose(same.total, 1.0 - (2 - 4) / 2)  # bound (1 + 1 - 4) / 2 = -1, cos 1
    still = rl.bellman_rank_penalty(np.array([[1.0, 0]]), np.array([[1.0, 0]]), np.array([0.0]), head, discount=1.0)
    assert still.total == 0  # bound 1: no reward, no change, no penalty
    orthogonal = rl.bellman_rank_penalty(
        np.array([[1.0, 0]]), np.array([[0.0, 1]]), np.array([0.5]), head, discount=1.0
    )
    assert orthogonal.total == 0


def test_masks_zero_features_and_gradients():
    phi = np.array([[1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]])
    nxt = np.array([[1.0, 2.1], [1.0, 0.0], [np.nan, np.nan]])
    reward, head = np.array([5.0, 5.0, np.nan]), np.array([0.4, 0.1])
    mask = np.array([True, True, False])
    loss = rl.bellman_rank_penalty(phi, nxt, reward, head, mask, discount=0.9)
    assert loss.weight == 2 and float(loss.metrics["active"].total) == 1 and np.isfinite(loss.total)
    grads = jax.grad(lambda p, n, w: rl.bellman_rank_penalty(p, n, reward, w, mask, discount=0.9).total, (0, 1, 2))(
        phi, nxt, head
    )
    assert all(bool(np.isfinite(g).all()) for g in grads)
    assert float(np.abs(grads[1]).max()) == 0 and float(np.abs(grads[2]).max()) == 0
    assert float(np.abs(grads[0][1:]).max()) == 0 and float(np.abs(grads[0][0]).max()) > 0
    # The gradient is that of the cosine alone.
    cosine = lambda p: p @ nxt[0] / (jnp.linalg.norm(p) * np.linalg.norm(nxt[0]))  # noqa: E731
    np.testing.assert_allclose(grads[0][0], jax.grad(cosine)(phi[0]), atol=1e-6)
    empty = rl.bellman_rank_penalty(phi, nxt, reward, head, np.zeros(3, bool), discount=0.9)
    assert empty.mean() == 0
