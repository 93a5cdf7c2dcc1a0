"""Formulas against Python's own arithmetic, and a search that finds one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.search import worlds
from prm_jax.search.worlds import expressions

GRAMMAR = worlds.Grammar(columns=4, max_length=9, operators=("+", "*", "-", "sin"))
NAMES = ("x", "1", "p", "q")
X = np.linspace(-1.0, 2.0, 12)
COLUMNS = np.stack([X, np.ones_like(X), np.full_like(X, np.nan), np.full_like(X, np.nan)])
PRESENT = np.array([True, True, False, False])


def tokens(text):
    """Prefix notation, one character a token ("s" is the sine)."""
    ids = ["+*-sx1pq".index(character) for character in text]
    return np.array(ids + [-1] * (GRAMMAR.max_length - len(ids)))


@pytest.mark.parametrize(
    ("prefix", "infix"),
    [("x", "x"), ("+x1", "(x + 1)"), ("-*xx+x1", "((x * x) - (x + 1))"), ("s-1*xx", "sin((1 - (x * x)))")],
)
def test_evaluation_and_text(prefix, infix):
    assert expressions.to_text(GRAMMAR, tokens(prefix), NAMES) == infix
    values = jax.jit(functools.partial(expressions.evaluate, GRAMMAR))(tokens(prefix), COLUMNS)
    slow = [eval(infix, {"x": x, "sin": math.sin}) for x in X]
    np.testing.assert_allclose(values, slow, rtol=1e-5, atol=1e-6)


def test_completions_are_complete_and_use_what_is_there():
    start = expressions.empty_formula(GRAMMAR)
    finish = jax.jit(jax.vmap(lambda key: expressions.complete(GRAMMAR, start, jnp.asarray(PRESENT), key)))
    formula = finish(jax.random.split(jax.random.key(0), 200))
    assert np.all(formula.open == 0) and set(np.asarray(formula.length)) > {1, 2, 3, 5, 9}
    assert np.asarray(formula.tokens).max() <= 5  # no column that is not present
    for row in np.asarray(formula.tokens)[:20]:
        assert expressions.to_text(GRAMMAR, row, NAMES)


def test_the_part_that_recurs():
    formulas = np.stack([tokens("+*xx1"), tokens("-x*xx"), tokens("s*xx"), tokens("+x1"), tokens("+x1")])
    find = jax.jit(functools.partial(expressions.recurring_part, GRAMMAR))
    part, score = find(formulas, np.ones(5, bool))
    assert part.tolist() == tokens("*xx").tolist() and int(score) == 2 * 2
    part, score = find(formulas, np.array([False, False, True, True, True]))
    assert part.tolist() == tokens("+x1").tolist() and int(score) == 2
    assert int(find(formulas, np.array([False, False, True, True, False]))[1]) == 0


def test_a_search_finds_the_formula():
    target = np.stack([X * X + X, np.sin(X) + 1.0])

    @jax.jit
    def run(key):
        both = lambda x: jnp.broadcast_to(jnp.asarray(x), (2, *np.shape(x)))  # noqa: E731
        return worlds.regress(GRAMMAR, both(COLUMNS), both(PRESENT), target, key, simulations=60, rounds=3)

    found = run(jax.random.key(1))
    assert np.all(found.reward > 0.94), [expressions.to_text(GRAMMAR, row, NAMES) for row in found.tokens]
    values = [expressions.evaluate(GRAMMAR, t, c) for t, c in zip(found.tokens, found.columns, strict=True)]
    np.testing.assert_allclose(values, target, atol=1e-5)
    assert np.all(found.present.sum(1) > 2)  # parts became columns
    for parts, columns in zip(found.parts, found.columns, strict=True):
        for slot in (2, 3):
            if parts[slot, 0] >= 0:
                values = expressions.evaluate(GRAMMAR, parts[slot], columns)
                np.testing.assert_allclose(values, columns[slot], rtol=1e-5)


def test_with_64_bits():
    """Numbers of 64 bits around it change nothing."""
    grammar = worlds.Grammar(columns=3, max_length=5, operators=("+", "*"))
    columns, target = np.stack([X, X + 1, X])[None], (X * X)[None]
    run = functools.partial(worlds.regress, grammar, simulations=6, rounds=2)
    expected = jax.jit(run)(columns, PRESENT[None, :3], target, jax.random.key(0))
    with jax.enable_x64(True):
        found = jax.jit(run)(columns, PRESENT[None, :3], target, jax.random.key(0))
        reward = worlds.formula_reward(grammar, jnp.array([2, -1, -1, -1, -1]), columns[0], target[0])
    assert [x.dtype for x in found] == [x.dtype for x in expected] and reward.dtype == jnp.float32
    assert found.reward > 0


def test_bad_grammar():
    with pytest.raises(ValueError, match="operators among"):
        worlds.Grammar(columns=1, max_length=3, operators=("pow",))
