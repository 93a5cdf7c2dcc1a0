"""The carry world against enumeration, against the task's own checker, and searched."""

import functools

import jax
import numpy as np

from prm_jax import search as s
from prm_jax.data.carry import CarryTask, operands
from prm_jax.search import worlds

L = 6


def problems(count=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 10, (count, L)), rng.integers(2, L + 1, count)


def enumerate_value(row, total, drop):
    """Chance of the right answer by following every way to go on."""

    def go(index, written):
        if index == len(row):
            return float(written == total)
        after = written + row[index]
        if written % 10 + row[index] < 10:
            return go(index + 1, after)
        return (1 - drop) * go(index + 1, after) + drop * go(index + 1, after - 10)

    return go(1, row[0])


@jax.jit
def searched(numbers, lengths, key):
    world = worlds.carry_world(numbers, lengths, drop_carry=0.6)
    start = worlds.carry_start(world)
    tree = s.init_tree(numbers.shape[0], 61, value=worlds.carry_values(world, start), state=start)
    evaluate = functools.partial(worlds.carry_expand, world, noise=0.2)
    return s.search(tree, evaluate, 30, s.puct(1.25), width=2, max_depth=L, key=key), worlds.carry_values(world, start)


def test_exact_values_and_a_noisy_search():
    numbers, lengths = problems()
    tree, values = searched(numbers, lengths, jax.random.key(0))
    slow = [enumerate_value(row[:n], sum(row[:n]), 0.6) for row, n in zip(numbers, lengths, strict=True)]
    np.testing.assert_allclose(values, slow, rtol=1e-5)
    # The best answer in each tree is the right one, although the policy's most likely answer often is not.
    best = np.where(tree.terminal, tree.value, -1).argmax(1)
    found = np.asarray(tree.state.total)[np.arange(len(best)), best]
    np.testing.assert_array_equal(found, [sum(row[:n]) for row, n in zip(numbers, lengths, strict=True)])
    # Every node agrees with the task's checker about the prefix that it stands for.
    labels, mask = jax.jit(functools.partial(s.tree_labels, how="hard"))(tree, tree.state.right)
    task = CarryTask(2, L, num_train=8, num_eval=8)
    for b in range(4):
        problem = task.eval[0].__class__("+".join(map(str, numbers[b, : lengths[b]])) + "=", "0", "x", {})
        assert operands(problem) == tuple(numbers[b, : lengths[b]])
        for node in np.flatnonzero(tree.valid[b])[1:]:
            path = [node]
            while tree.parent[b, path[0]] >= 0:
                path.insert(0, int(tree.parent[b, path[0]]))
            totals = np.asarray(tree.state.total)[b, path]
            text = ";".join(f"{t}+{numbers[b, i + 1]}={totals[i + 1]}" for i, t in enumerate(totals[:-1]))
            assert all(task.step_labels(problem, text)) == bool(tree.state.right[b, node])
            if mask[b, node] and not tree.state.right[b, node]:
                assert labels[b, node] == 0  # nothing below a dropped carry is right


def test_several_leaves_at_once():
    numbers, lengths = problems()
    world = worlds.carry_world(numbers, lengths)

    def run(leaves, simulations):
        tree = s.init_tree(len(lengths), 61, state=worlds.carry_start(world))
        evaluate = functools.partial(worlds.carry_expand, world, noise=0.2)
        method = s.Method(s.puct(), width=2, max_depth=L, leaves=leaves)
        return s.search(tree, evaluate, simulations, method, key=jax.random.key(0))

    tree = jax.jit(run, static_argnums=(0, 1))(3, 10)
    value = worlds.carry_values(world, tree.state)
    ends = np.asarray(tree.terminal)
    np.testing.assert_allclose(np.asarray(tree.value)[ends], np.asarray(value)[ends])
    noise = np.asarray(tree.value - value)[np.asarray(tree.parent >= 0) & ~ends]
    assert ends.any() and len(np.unique(noise)) > 0.9 * len(noise)  # every child's own
