"""Symbolic regression as tree search: formulas token by token, with max backup, double Q-learning and found parts.

RSRM, arXiv 2305.14656: a tree search guided by two tables of token values, which are learned from the formulas that
were tried; and parts of good formulas become tokens of their own.
"""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax import rl
from prm_jax.search.evaluation import Expansion, Leaf
from prm_jax.search.growth import ask, grow
from prm_jax.search.method import Method
from prm_jax.search.tree import Tree, at, init_tree
from prm_jax.search.worlds.expressions import (
    NO_TOKEN,
    Formula,
    Grammar,
    allowed_tokens,
    append,
    complete,
    empty_formula,
    evaluate,
    recurring_part,
)


@dataclasses.dataclass(frozen=True)
class RsrmOptions:
    """Constants of the search; hashable, static under jit.

    Attributes:
      min_visits: below this many visits of a node its child is chosen at random.
      greedy: chance to choose by the tables, otherwise at random.
      rate: learning rate of the tables.
      discount: of the tables.
      step_reward: reward of each token but the last.
      shrink: factor on the reward for each token of the formula.
      form: target of double Q-learning, see `rl.double_q_target`; "rsrm" is the released code's.
    """

    min_visits: float = 10.0
    greedy: float = 0.6
    rate: float = 1e-3
    discount: float = 0.95
    step_reward: float = -0.1
    shrink: float = 0.99
    form: Literal["standard", "rsrm"] = "standard"


class Regression(NamedTuple):
    """The results for B data sets.

    Attributes:
      tokens: [B, T] i32, the best formula.
      reward: [B] f32, its reward.
      columns: [B, V, n] f32, values of all columns, found parts included.
      parts: [B, V, T] i32, the formulas of found parts, -1 elsewhere.
      present: [B, V] bool, columns that exist.
    """

    tokens: jax.Array
    reward: jax.Array
    columns: jax.Array
    parts: jax.Array
    present: jax.Array


class _Guess(NamedTuple):
    """State of a node: a beginning and one way to complete it."""

    formula: Formula
    whole: jax.Array  # [..., T] i32


def formula_reward(
    grammar: Grammar, tokens: jax.Array, columns: jax.Array, target: jax.Array, *, shrink: float = 0.99
) -> jax.Array:
    """`shrink^length / (1 + RMSE)` of one complete formula; 0 where it is not defined at every point.

    Args:
      grammar: of the formula.
      tokens: [T] i32.
      columns: [V, n] f32.
      target: [n] f32.
      shrink: factor for each token.

    Returns:
      f32 scalar in [0, 1].
    """
    error = evaluate(grammar, tokens, jnp.asarray(columns, jnp.float32)) - jnp.asarray(target, jnp.float32)
    rmse = jnp.sqrt(jnp.mean(error**2))
    reward = shrink ** jnp.sum(tokens >= 0, dtype=jnp.float32) / (1.0 + rmse)
    return jnp.where(jnp.isfinite(rmse), reward, 0.0)


def regress(
    grammar: Grammar,
    columns: ArrayLike,
    present: ArrayLike,
    target: ArrayLike,
    key: jax.Array,
    *,
    simulations: int,
    rounds: int = 1,
    elite: int = 16,
    options: RsrmOptions = RsrmOptions(),
) -> Regression:
    """Searches formulas for B data sets; call it under `jax.jit`.

    Each round searches a new tree for each data set. Between rounds the part that recurs most among the tree's best
    formulas becomes a column, while there are free ones.

    Args:
      grammar: tokens of the formulas; free places in its columns are for parts.
      columns: [B, V, n] f32, values at n points; ignored in free places.
      present: [B, V] bool, False in free places.
      target: [B, n] f32.
      key: typed PRNG key, consumed.
      simulations: static, simulations of each round; each tries one completion of every child.
      rounds: static.
      elite: static, formulas among which parts are looked for.
      options: constants.

    Returns:
      `Regression`.

    Source: arXiv 2305.14656.
    """
    columns, target = jnp.asarray(columns, jnp.float32), jnp.asarray(target, jnp.float32)
    present = jnp.asarray(present) != 0
    batch, size, points = columns.shape
    chex.assert_shape(columns, (batch, grammar.columns, points))
    chex.assert_shape(present, (batch, size))
    chex.assert_shape(target, (batch, points))
    start = Regression(
        jnp.full((batch, grammar.max_length), NO_TOKEN, jnp.int32),
        jnp.full((batch,), -jnp.inf, jnp.float32),
        columns,
        jnp.full((batch, size, grammar.max_length), NO_TOKEN, jnp.int32),
        present,
    )

    def one_round(number: jax.Array, found: Regression) -> Regression:
        tree = _search_round(grammar, found, target, jax.random.fold_in(key, number), simulations, options)
        found = _take_best(tree, found)
        return _add_part(grammar, tree, found, elite)

    return jax.lax.fori_loop(0, rounds, one_round, start)


def _search_round(
    grammar: Grammar, found: Regression, target: jax.Array, key: jax.Array, simulations: int, options: RsrmOptions
) -> Tree:
    batch = target.shape[0]
    root = empty_formula(grammar, (batch,))
    tree = init_tree(batch, 1 + simulations * grammar.size, state=_Guess(root, root.tokens))
    tables = jnp.zeros((2, batch, grammar.max_length, grammar.size), jnp.float32)
    both = jax.vmap(lambda b: jax.random.split(jax.random.fold_in(key, b)))(jnp.arange(batch))
    keys, choosing = both[:, 0], both[:, 1]
    method = Method(_no_score, grammar.size, grammar.max_length, rule="max", returns="children")

    def simulate(number: jax.Array, carry: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        tree, tables = carry
        own = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(choosing)
        score = _TableScore(tables[0] + tables[1], own[:, 0], options)
        selection, leaf = ask(tree, dataclasses.replace(method, score_fn=score), number, keys)
        answer = _expand(grammar, found, target, leaf, options)
        tree, _ = grow(tree, selection, answer, method)
        value = jnp.where(answer.valid, answer.value, -jnp.inf)
        best = jnp.argmax(value, axis=1)
        tried = jnp.take_along_axis(answer.state.whole, best[:, None, None], axis=1)[:, 0]
        reward = jnp.take_along_axis(value, best[:, None], axis=1)[:, 0]
        return tree, _learn(tables, tried, reward, leaf.ok & (reward > -jnp.inf), own[:, 1], options)

    return jax.lax.fori_loop(0, simulations, simulate, (tree, tables))[0]


def _no_score(tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
    """A placeholder where `grow` needs a score rule but does not use it."""
    raise AssertionError("only selection scores children")


class _TableScore:
    """RSRM's choice of a child as a score with fresh noise: by the softmax of both tables, or uniformly."""

    def __init__(self, table: jax.Array, keys: jax.Array, options: RsrmOptions) -> None:
        self.table, self.keys, self.options = table, keys, options

    def __call__(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        depth, width = at(tree.depth, node), kids.shape[1]

        def draw(key: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
            choose, noise = jax.random.split(jax.random.fold_in(key, depth))
            return jax.random.uniform(choose), jax.random.gumbel(noise, (width,))

        uniform, noise = jax.vmap(draw)(self.keys, depth)
        # Children lie in the order of their tokens.
        value = self.table[jnp.arange(tree.batch), jnp.minimum(depth, self.table.shape[1] - 1)]
        greedy = (uniform < self.options.greedy) & (at(tree.visits, node) >= self.options.min_visits)
        return jnp.where(greedy[:, None], value, 0.0) + noise


def _expand(
    grammar: Grammar, found: Regression, target: jax.Array, leaf: Leaf, options: RsrmOptions
) -> Expansion:
    """All tokens that may follow, each completed once at random and evaluated."""
    assert leaf.key is not None

    def one(formula: Formula, columns: jax.Array, present: jax.Array, target: jax.Array, key: jax.Array) -> tuple:
        valid = allowed_tokens(grammar, formula, present)
        tokens = jnp.arange(grammar.size)
        child = append(grammar, jax.tree.map(lambda x: jnp.broadcast_to(x, (grammar.size, *x.shape)), formula), tokens)
        whole = jax.vmap(lambda f, k: complete(grammar, f, present, k))(child, jax.random.split(key, grammar.size))
        reward = jax.vmap(lambda t: formula_reward(grammar, t, columns, target, shrink=options.shrink))(whole.tokens)
        return child, whole.tokens, jnp.where(valid, reward, 0.0), valid

    child, whole, value, valid = jax.vmap(one)(leaf.state.formula, found.columns, found.present, target, leaf.key)
    prior = jnp.full(value.shape, 1.0 / grammar.size)
    return Expansion(prior, value, child.open == 0, valid, state=_Guess(child, whole))


def _learn(
    tables: jax.Array, tokens: jax.Array, reward: jax.Array, ok: jax.Array, keys: jax.Array, options: RsrmOptions
) -> jax.Array:
    """One step of double Q-learning on all tokens of one formula a data set; which table learns is a coin's choice."""
    real = (tokens >= 0) & ok[:, None]
    last = real & (jnp.cumsum(real[:, ::-1], axis=1)[:, ::-1] == 1)
    coin = jax.vmap(jax.random.bernoulli)(keys)[:, None, None]
    mine, other = jnp.where(coin, tables[0], tables[1]), jnp.where(coin, tables[1], tables[0])
    after = lambda q: jnp.concatenate([q[:, 1:], jnp.zeros_like(q[:, :1])], axis=1)  # noqa: E731
    rewards = jnp.where(last, reward[:, None], options.step_reward)
    discounts = jnp.where(last, 0.0, options.discount)
    target = rl.double_q_target(rewards, discounts, after(mine), after(other), form=options.form)
    index = jnp.maximum(tokens, 0)[..., None]
    error = jnp.where(real, target - jnp.take_along_axis(mine, index, axis=2)[..., 0], 0.0)
    hot = jax.nn.one_hot(jnp.maximum(tokens, 0), tables.shape[-1], dtype=jnp.float32)
    mine = mine + options.rate * error[..., None] * hot
    return jnp.stack([jnp.where(coin, mine, other), jnp.where(coin, other, mine)])


def _take_best(tree: Tree, found: Regression) -> Regression:
    """Keeps the best formula of the tree where it beats the one kept so far."""
    value = jnp.where(tree.parent >= 0, tree.value, -jnp.inf)
    best = jnp.argmax(value, axis=1)[:, None]
    reward = jnp.take_along_axis(value, best, axis=1)[:, 0]
    tokens = jnp.take_along_axis(tree.state.whole, best[..., None], axis=1)[:, 0]
    better = reward > found.reward
    return found._replace(
        tokens=jnp.where(better[:, None], tokens, found.tokens), reward=jnp.where(better, reward, found.reward)
    )


def _add_part(grammar: Grammar, tree: Tree, found: Regression, elite: int) -> Regression:
    """Makes the part that recurs most among the best formulas a column, where one is free."""
    value = jnp.where(tree.parent >= 0, tree.value, -jnp.inf)
    best, order = jax.lax.top_k(value, min(elite, tree.capacity))
    formulas = jnp.take_along_axis(tree.state.whole, order[..., None], axis=1)

    def one(formulas: jax.Array, mask: jax.Array, columns: jax.Array, parts: jax.Array, present: jax.Array) -> tuple:
        part, score = recurring_part(grammar, formulas, mask)
        values = evaluate(grammar, part, columns)
        known = jnp.any(jnp.all(parts == part, axis=-1))
        slot = jnp.argmin(present)
        adds = (score > 0) & ~present[slot] & ~known & jnp.all(jnp.isfinite(values))
        at_slot = (jnp.arange(present.shape[0]) == slot) & adds
        return (
            jnp.where(at_slot[:, None], values, columns),
            jnp.where(at_slot[:, None], part, parts),
            present | at_slot,
        )

    columns, parts, present = jax.vmap(one)(formulas, best > 0, found.columns, found.parts, found.present)
    return found._replace(columns=columns, parts=parts, present=present)
