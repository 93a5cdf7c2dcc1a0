"""Two players who alternate, by a discount of -1: the search finds the winning moves of Nim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import search as s

PILES = np.arange(1, 13)  # whoever takes the last of the stones wins; a move takes one, two or three


def evaluate(leaf):
    left = leaf.state[..., None] - jnp.array([1, 2, 3])
    # The player to move at an empty pile has lost; nothing is known about the others.
    value = jnp.where(left == 0, -1.0, 0.0)
    return s.Expansion(jnp.full(left.shape, 1 / 3), value, left == 0, left >= 0, state=left)


@pytest.mark.parametrize("constants", [{}, {"returns": "children"}, {"rule": "child_mean"}, {"leaves": 2}])
def test_the_winning_move_is_found(constants):
    method = s.Method(s.puct(1.25, discount=-1.0), width=3, max_depth=14, discount=-1.0, revisit=True, **constants)

    @jax.jit
    def run(piles):
        tree = s.init_tree(len(piles), 1 + 3 * 600, state=piles)
        tree = s.search(tree, evaluate, 300, method, key=jax.random.key(0))
        paths = [s.best_path(tree, "visits", max_depth=1), s.best_path(tree, "q", max_depth=1, discount=-1.0)]
        return tree, jnp.stack([path[:, 1] for path in paths])

    tree, first = run(jnp.asarray(PILES))
    value = np.asarray(s.q_values(tree))[:, 0]
    for b, pile in enumerate(PILES.tolist()):
        if pile % 4:  # the player to move wins by leaving a multiple of four
            assert all(pile - int(tree.state[b, move]) == pile % 4 for move in first[:, b].tolist()), pile
            assert value[b] > 0
        else:
            assert value[b] < 0


@jax.jit
def two_levels():
    """A root with two children, the first of which has two; one value at the end, and three halfway."""
    numbers = (jnp.ones((1, 2)), jnp.zeros((1, 2)))
    no, yes = jnp.zeros((1, 2), bool), jnp.ones((1, 2), bool)
    tree = s.init_tree(1, 5)
    tree, kids = s.expand(tree, [0], *numbers, no, yes, [True])
    tree, below = s.expand(tree, kids[:, 0], *numbers, yes, yes, [True])
    path = jnp.stack([jnp.zeros(1, jnp.int32), kids[:, 0], below[:, 1]], axis=1)
    one = s.backup(tree, path, jnp.ones(1), discount=-1.0)
    more = s.backup(one, path[:, :2], jnp.ones(1), 3.0, discount=-1.0)
    scores, _ = s.child_scores(more, [0], s.puct(0.0, discount=-1.0), width=2)
    return s.q_values(one), s.q_values(more), scores


def test_values_along_a_path_change_their_sign():
    one, more, scores = two_levels()
    np.testing.assert_array_equal(one, [[1, -1, 0, 0, 1]])
    np.testing.assert_allclose(more[0, :2], [-0.5, 0.5])
    # The first player prefers to leave the second one the other child, whose value is 0.
    np.testing.assert_allclose(scores, [[-0.5, 0.0]])
