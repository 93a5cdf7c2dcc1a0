"""Formulas in prefix notation as arrays: evaluation, random completion, and recurring parts.

A formula is a row of tokens, -1 after its end. Tokens are operators and columns: variables, constants, and parts of
formulas that were found before, each with its value at every data point.
"""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

BINARY = ("+", "-", "*", "/")
UNARY = ("sin", "cos", "exp", "log")
OPERATORS = (*BINARY, *UNARY)
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The tokens of formulas; hashable, static under jit.

    Attributes:
      columns: V, number of columns, including free places for parts.
      max_length: T, maximum number of tokens of a formula.
      operators: those in use, a subset of `OPERATORS`.
    """

    columns: int
    max_length: int
    operators: tuple[str, ...] = OPERATORS

    def __post_init__(self) -> None:
        """Checks the operators."""
        unknown = [name for name in self.operators if name not in OPERATORS]
        if unknown or self.columns < 1 or self.max_length < 1:
            raise ValueError(
                f"a grammar needs columns and max_length of at least 1 and operators among {OPERATORS}, "
                f"got {self.columns}, {self.max_length} and {self.operators}"
            )

    @property
    def size(self) -> int:
        """A, the number of tokens: operators first, then columns."""
        return len(self.operators) + self.columns

    @property
    def arity(self) -> np.ndarray:
        """[A] i32."""
        return np.array([2 if name in BINARY else 1 for name in self.operators] + [0] * self.columns, np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Formula:
    """The beginning of a formula; leaves [...].

    Attributes:
      tokens: [..., T] i32.
      length: i32, tokens so far.
      open: i32, operands that are missing; 0 when the formula is complete.
    """

    tokens: jax.Array
    length: jax.Array
    open: jax.Array


def empty_formula(grammar: Grammar, shape: Sequence[int] = ()) -> Formula:
    """Formulas without a token, in which one operand is open."""
    shape = tuple(shape)
    tokens = jnp.full((*shape, grammar.max_length), NO_TOKEN, jnp.int32)
    return Formula(tokens, jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.int32))


def allowed_tokens(grammar: Grammar, formula: Formula, present: jax.Array) -> jax.Array:
    """[..., A] bool: tokens after which the formula can still be completed within T tokens.

    Args:
      grammar: of the formula.
      formula: leaves [...].
      present: [..., V] bool, columns that exist.

    Returns:
      All False once the formula is complete.
    """
    arity = jnp.asarray(grammar.arity)
    fits = formula.length[..., None] + formula.open[..., None] + arity <= grammar.max_length
    operators = jnp.ones((*present.shape[:-1], len(grammar.operators)), bool)
    return fits & (formula.open > 0)[..., None] & jnp.concatenate([operators, present], axis=-1)


def append(grammar: Grammar, formula: Formula, token: jax.Array) -> Formula:
    """Appends one token [...] to formulas of leaves [...]; complete ones do not change."""
    writes = formula.open > 0
    here = (jnp.arange(grammar.max_length) == formula.length[..., None]) & writes[..., None]
    return Formula(
        jnp.where(here, token[..., None], formula.tokens),
        formula.length + writes,
        formula.open + jnp.where(writes, jnp.asarray(grammar.arity)[token] - 1, 0),
    )


def complete(grammar: Grammar, formula: Formula, present: jax.Array, key: jax.Array) -> Formula:
    """Completes one formula with tokens drawn uniformly from the allowed ones.

    Args:
      grammar: of the formula.
      formula: leaves without an axis; `vmap` for more.
      present: [V] bool, columns that exist, at least one.
      key: typed PRNG key, consumed.

    Returns:
      A complete formula.
    """

    def step(formula: Formula, key: jax.Array) -> tuple[Formula, None]:
        logits = jnp.where(allowed_tokens(grammar, formula, present), 0.0, -jnp.inf)
        return append(grammar, formula, jax.random.categorical(key, logits)), None

    return jax.lax.scan(step, formula, jax.random.split(key, grammar.max_length))[0]


def evaluate(grammar: Grammar, tokens: jax.Array, columns: jax.Array) -> jax.Array:
    """The values of one complete formula.

    Args:
      grammar: of the formula.
      tokens: [T] i32.
      columns: [V, n] float, the columns' values at n points.

    Returns:
      [n] f32; not finite where the formula is not defined.
    """
    chex.assert_shape(tokens, (grammar.max_length,))
    chex.assert_shape(columns, (grammar.columns, None))
    functions: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "+": jnp.add, "-": jnp.subtract, "*": jnp.multiply, "/": jnp.divide,
        "sin": lambda a, b: jnp.sin(a), "cos": lambda a, b: jnp.cos(a),
        "exp": lambda a, b: jnp.exp(a), "log": lambda a, b: jnp.log(a),
    }  # fmt: skip
    operators = len(grammar.operators)
    arity = jnp.asarray(grammar.arity)

    def step(carry: tuple[jax.Array, jax.Array], token: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        stack, size = carry
        first, second = stack[jnp.maximum(size - 1, 0)], stack[jnp.maximum(size - 2, 0)]
        column = columns[jnp.clip(token - operators, 0, grammar.columns - 1)]
        results = jnp.stack([*(functions[name](first, second) for name in grammar.operators), column])
        result = results[jnp.clip(token, 0, operators)]
        after = size + 1 - arity[jnp.maximum(token, 0)]
        written = stack.at[jnp.maximum(after - 1, 0)].set(result)
        real = token >= 0
        return (jnp.where(real, written, stack), jnp.where(real, after, size)), None

    stack = jnp.zeros((grammar.max_length + 1, columns.shape[1]), jnp.float32)
    (stack, _), _ = jax.lax.scan(step, (stack, jnp.int32(0)), tokens, reverse=True)
    return stack[0]


def recurring_part(
    grammar: Grammar, tokens: jax.Array, mask: jax.Array, *, min_length: int = 3
) -> tuple[jax.Array, jax.Array]:
    """The part that recurs most among some formulas: the largest (occurrences - 1) * (length - 1).

    Args:
      grammar: of the formulas.
      tokens: [K, T] i32, complete formulas.
      mask: [K] bool, formulas that count.
      min_length: static, tokens of the smallest part looked for.

    Returns:
      (part [T] i32, score i32 scalar): 0 when nothing recurs.
    """
    count, size = tokens.shape
    arity = jnp.where(tokens >= 0, jnp.asarray(grammar.arity)[jnp.maximum(tokens, 0)], 0)
    # From place i on, operands still open after j: 1 + sum of (arity - 1); a part ends where that first reaches 0.
    change = jnp.where(tokens >= 0, arity - 1, 0)
    sums = jnp.cumsum(change, axis=1)
    before = sums - change
    place = jnp.arange(size)
    ended = (1 + sums[:, None, :] - before[:, :, None] == 0) & (place[None, :] >= place[:, None])
    length = jnp.argmax(ended, axis=2) - place + 1
    parts = jnp.take_along_axis(
        jnp.broadcast_to(tokens[:, None], (count, size, size)),
        jnp.minimum(place[:, None] + place, size - 1)[None], axis=2,
    )  # fmt: skip
    parts = jnp.where(place < length[..., None], parts, NO_TOKEN).reshape(count * size, size)
    whole = jnp.any(ended, axis=2) & (tokens >= 0) & mask[:, None] & (length >= min_length)
    whole, length = whole.reshape(-1), length.reshape(-1)
    same = jnp.all(parts[:, None] == parts[None], axis=-1) & whole[:, None] & whole[None]
    score = jnp.where(whole, (jnp.sum(same, axis=1) - 1) * (length - 1), 0)
    best = jnp.argmax(score)
    return parts[best], score[best]


def to_text(grammar: Grammar, tokens: Sequence[int], names: Sequence[str]) -> str:
    """A formula in infix notation.

    Args:
      grammar: of the formula.
      tokens: its tokens, -1 after the end.
      names: V names of the columns; a part's name is its own text.

    Returns:
      The text, every operation in parentheses.
    """
    left = [int(token) for token in tokens if token >= 0]

    def read() -> str:
        token = left.pop(0)
        if token >= len(grammar.operators):
            return names[token - len(grammar.operators)]
        name = grammar.operators[token]
        return f"({read()} {name} {read()})" if name in BINARY else f"{name}({read()})"

    return read()
