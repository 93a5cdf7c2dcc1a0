r"""The forms that an answer can have: a value, a list, a set, a tuple or interval, a union, a relation, and so on."""

import dataclasses
from typing import TypeAlias

from prm_jax.verifiers.expressions import Expr
from prm_jax.verifiers.units import Unit

MAX_ITEMS = 60
"""Items of a list, and entries of a matrix."""


@dataclasses.dataclass(frozen=True)
class Value:
    """One expression."""

    tree: Expr


@dataclasses.dataclass(frozen=True)
class Several:
    r"""Values without an order: ``1, 2``, ``\{1, 2\}``, ``1 or 2``; no items for the empty set.

    Attributes:
      items: the values.
      braces: written as a set.
      joined: ``","``, ``"and"`` or ``"or"``.
    """

    items: "tuple[Form, ...]"
    braces: bool = False
    joined: str = ","


@dataclasses.dataclass(frozen=True)
class Bracketed:
    """A tuple or an interval: which of the two, only the problem says."""

    left: str
    right: str
    items: "tuple[Form, ...]"


@dataclasses.dataclass(frozen=True)
class Union:
    """A union (``op`` is ``"cup"``), intersection or difference of sets."""

    op: str
    parts: "tuple[Form, ...]"


@dataclasses.dataclass(frozen=True)
class Relation:
    r"""Sides with relations between them: ``a < b \le c``; at least two sides."""

    ops: tuple[str, ...]
    sides: "tuple[Form, ...]"


@dataclasses.dataclass(frozen=True)
class Named:
    """``x = 5``, ``f(x) = x^2``, ``(x, y) = (1, 2)``; names is ``()`` for an unnamed tuple of symbols."""

    names: tuple[str, ...]
    form: "Form"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Rows of expressions; ``kind`` is ``"vmatrix"`` for a determinant and ``"matrix"`` otherwise."""

    rows: tuple[tuple[Expr, ...], ...]
    kind: str


@dataclasses.dataclass(frozen=True)
class Colon:
    """A ratio or a time of day, compared part by part."""

    parts: tuple[Expr, ...]
    suffix: str = ""


@dataclasses.dataclass(frozen=True)
class Based:
    """Digits in a base: ``2516_8``."""

    digits: str
    base: str


@dataclasses.dataclass(frozen=True)
class Words:
    """Words, normalised to lower case."""

    text: str


Form: TypeAlias = Value | Several | Bracketed | Union | Relation | Named | Matrix | Colon | Based | Words


@dataclasses.dataclass(frozen=True)
class Answer:
    """A form with the unit around it.

    Attributes:
      form: what the answer is.
      unit: its unit, () for none.
      tokens: the texts of all tokens, for comparison to the letter.
    """

    form: Form
    unit: Unit
    tokens: tuple[str, ...]


_INFINITY = Value(Expr("const", name="inf"))
REALS = Bracketed("(", ")", (Value(Expr("neg", (_INFINITY.tree,))), _INFINITY))
EMPTY = Several((), braces=True)
