"""Comparing two answers by their forms.

The expressions at the leaves are compared by a ``Leaves`` object: exactly, in this process, or by evaluation, in the
processes of ``math_pool``.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

from prm_jax.verifiers import units
from prm_jax.verifiers.exact_value import Inexact, Undefined, exact
from prm_jax.verifiers.expressions import Expr, symbols
from prm_jax.verifiers.forms import (
    REALS,
    Answer,
    Based,
    Bracketed,
    Colon,
    Form,
    Matrix,
    Named,
    Relation,
    Several,
    Union,
    Value,
    Words,
)

MIN_ROUNDED_DIGITS = 6
"""Decimal places, and digits that are not zeros at either end, that a rounded value must show."""


class Undecided(Exception):
    """The answers differ in form or need evaluation: only a process that may be killed can tell."""


class Leaves(Protocol):
    """How expressions are compared."""

    def equal(self, a: Expr, b: Expr) -> bool:
        """Whether two expressions are equal."""
        ...

    def proportional(self, a: Expr, b: Expr, *, positive: bool) -> bool:
        """Whether one is a constant multiple of the other."""
        ...

    def rounds_to(self, tree: Expr, decimal: Fraction, places: int) -> bool:
        """Whether a constant rounds to a decimal."""
        ...


class ExactLeaves:
    """Compares rational numbers and identical expressions; anything else raises ``Undecided``."""

    def equal(self, a: Expr, b: Expr) -> bool:
        """See ``Leaves``."""
        try:
            return exact(a) == exact(b)
        except Undefined:
            return False
        except Inexact:
            if _bare(a) == _bare(b) and not _risky(a):
                return True
            raise Undecided from None

    def proportional(self, a: Expr, b: Expr, *, positive: bool) -> bool:
        """See ``Leaves``."""
        raise Undecided

    def rounds_to(self, tree: Expr, decimal: Fraction, places: int) -> bool:
        """See ``Leaves``."""
        try:
            return abs(exact(tree) - decimal) <= Fraction(1, 2 * 10**places)
        except Undefined:
            return False
        except Inexact:
            raise Undecided from None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What ``same`` needs to know.

    Attributes:
      leaves: compares expressions.
      strict: accept no roundings, no missing or additional units and bases, and no percent for a ratio.
    """

    leaves: Leaves
    strict: bool = False

    def same(self, wanted: Answer, found: Answer) -> bool:
        """Whether an answer agrees with the reference."""
        if wanted.tokens == found.tokens:
            return True
        if not units.compatible(wanted.unit, found.unit, strict=self.strict):
            return False
        if self.forms(wanted.form, found.form):
            return True
        return not self.strict and found.unit == (("percent", 1),) and not wanted.unit and self._percent(wanted, found)

    def _percent(self, wanted: Answer, found: Answer) -> bool:
        """50% for 0.5: a percentage is a ratio where the reference is one, between -1 and 1."""
        if not (isinstance(wanted.form, Value) and isinstance(found.form, Value)):
            return False
        try:
            return abs(exact(wanted.form.tree)) <= 1 and exact(wanted.form.tree) * 100 == exact(found.form.tree)
        except (Inexact, Undefined):
            return False

    def forms(self, wanted: Form, found: Form) -> bool:
        """Whether two forms agree, each in any of its readings."""
        renamed = isinstance(wanted, Named) and isinstance(found, Named) and wanted.names != found.names
        for a in _readings(wanted):
            for b in _readings(found):
                if type(a) is type(b) and not (renamed and isinstance(a, Value)) and self._alike(a, b):
                    return True
        if isinstance(wanted, Based) and isinstance(found, Value) and not self.strict:
            return found.tree.op == "num" and str(found.tree.value) == wanted.digits
        return self._as_sets(wanted, found) or self._as_names(wanted, found)

    def _alike(self, a: Form, b: Form) -> bool:
        """Whether two forms of one type agree."""
        match a, b:
            case Value(), Value():
                return self._values(a.tree, b.tree)
            case Several(), Several():
                dots = any(isinstance(item, Words) for item in (*a.items, *b.items))  # a sequence has an order
                if (_letters(b) and not _letters(a)) or _contradict(a, b) or (dots and a.joined != b.joined):
                    return False
                return (self._each if dots else self._unordered)(a.items, b.items)
            case Bracketed(), Bracketed():
                return (a.left, a.right) == (b.left, b.right) and self._each(a.items, b.items)
            case Union(), Union():
                return a.op == b.op and (self._each if a.op == "setminus" else self._unordered)(a.parts, b.parts)
            case Relation(), Relation():
                return self._relations(a, b)
            case Matrix(), Matrix():
                return a.kind == b.kind and self._rows(a, b)
            case Colon(), Colon():
                suffixes = a.suffix == b.suffix or (not self.strict and not a.suffix)
                return suffixes and len(a.parts) == len(b.parts) and all(map(self.leaves.equal, a.parts, b.parts))
            case Based(), Based():
                return a == b
            case Words(), Words():
                return a == b
            case Named(), Named():
                return a.names == b.names and self.forms(a.form, b.form)
        return False

    def _values(self, a: Expr, b: Expr) -> bool:
        if not self.strict:
            for decimal, other in ((a, b), (b, a)):
                if (shown := _rounded(decimal)) and not _has_decimals(other):
                    places, value = shown
                    return self.leaves.rounds_to(other, value, places)
        return self.leaves.equal(a, b)

    def _each(self, a: Sequence[Form], b: Sequence[Form]) -> bool:
        return len(a) == len(b) and all(self.forms(x, y) for x, y in zip(a, b, strict=True))

    def _unordered(self, a: Sequence[Form], b: Sequence[Form]) -> bool:
        """Whether every item has a partner of its own."""
        if len(a) != len(b):
            return False
        left = list(b)
        for wanted in a:
            partner = next((index for index, found in enumerate(left) if self.forms(wanted, found)), None)
            if partner is None:
                return False
            left.pop(partner)
        return True

    def _rows(self, a: Matrix, b: Matrix) -> bool:
        if [len(row) for row in a.rows] != [len(row) for row in b.rows]:
            return False
        return all(self._values(x, y) for p, q in zip(a.rows, b.rows, strict=True) for x, y in zip(p, q, strict=True))

    def _relations(self, a: Relation, b: Relation) -> bool:
        """Chains side by side in one direction; one equation or inequality also up to a factor."""
        a, b = _oriented(a), _oriented(b)
        if a.ops != b.ops:
            return False
        if self._each(a.sides, b.sides) or (a.ops in (("=",), ("!=",)) and self._each(a.sides, b.sides[::-1])):
            return True
        if len(a.ops) > 1 or a.ops[0] not in ("=", "<", "<="):
            return False
        if not all(isinstance(side, Value) for side in (*a.sides, *b.sides)):
            return False
        first, second = _difference(a), _difference(b)
        if symbols(first) != symbols(second):
            return False
        return self.leaves.proportional(first, second, positive=a.ops[0] != "=")

    def _as_sets(self, wanted: Form, found: Form) -> bool:
        r"""An inequality, or ``x \in S``, against an interval or a union."""
        if isinstance(wanted, (Value, Words, Matrix, Based)) or isinstance(found, (Value, Words, Matrix, Based)):
            return False
        names = [frozenset[str]().union(*map(symbols, expressions_in(form))) for form in (wanted, found)]
        if names[0] and names[1] and names[0] != names[1]:
            return False
        a, b = _as_set(wanted), _as_set(found)
        if a is None or b is None or (a is wanted and b is found):
            return False
        if isinstance(a, Union) and isinstance(b, Union):
            return self._alike(a, b)
        return type(a) is type(b) and self._alike(a, b)

    def _as_names(self, wanted: Form, found: Form) -> bool:
        """``x = 2, y = 3`` for ``(2, 3)``: names decide the order."""
        a, b = _named_items(wanted), _named_items(found)
        if a and b:
            return sorted(a) == sorted(b) and len(a) == len(b) and all(self.forms(a[name], b[name]) for name in a)
        names, other = (a, found) if a else (b, wanted)
        if not names:
            return False
        items = [names[name] for name in sorted(names)]
        return isinstance(other, Bracketed) and other.left + other.right == "()" and self._each(items, other.items)


def expressions_in(form: Form) -> list[Expr]:
    """All expressions of a form."""
    match form:
        case Value():
            return [form.tree]
        case Several() | Bracketed():
            inside: Sequence[Form] = form.items
        case Union():
            inside = form.parts
        case Relation():
            inside = form.sides
        case Named():
            inside = [form.form]
        case Matrix():
            return [entry for row in form.rows for entry in row]
        case Colon():
            return list(form.parts)
        case _:
            return []
    return [tree for item in inside for tree in expressions_in(item)]


def _readings(form: Form) -> list[Form]:
    """A form and its other readings: the value of ``x = 5``, an equation for ``y = 2x``, items without names."""
    if isinstance(form, Named):
        inner = form.form
        if isinstance(inner, Named):  # n = (x = 5) is x = 5, but not 5
            return [form, inner, *_readings(inner)[-1:]]
        found: list[Form] = [form, *_readings(inner)]
        if len(form.names) == 1 and isinstance(inner, Value):
            name = form.names[0]
            found.append(Relation(("=",), (Value(Expr("sym", name=name)), inner)))
        return found
    if isinstance(form, Relation) and form.ops == ("in",) and isinstance(form.sides[1], Several):
        return [form, form.sides[1]]
    if isinstance(form, Several) and not form.braces and form.items:
        names = [item.names for item in form.items if isinstance(item, Named)]
        if len(names) == len(form.items) and len(set(names)) == 1:  # x = 0 or x = 1
            return [Several(tuple(item.form for item in form.items if isinstance(item, Named)), joined=form.joined)]
    return [form]


def _contradict(a: Several, b: Several) -> bool:
    """Whether inequalities are joined by "and" on one side and "or" on the other."""
    return {a.joined, b.joined} == {"and", "or"} and any(isinstance(item, Relation) for item in (*a.items, *b.items))


def _letters(form: Several) -> bool:
    """Whether the items are values of different letters, as in ``x = 2, y = 3``: that is a tuple, not a list."""
    return len({item.names[0].split("_")[0] for item in form.items if isinstance(item, Named)}) > 1


def _named_items(form: Form) -> dict[str, Form]:
    """The values of ``x = 2, y = 3`` and ``(x, y) = (2, 3)`` by name; {} for anything else."""
    if isinstance(form, Several):
        named = [item for item in form.items if isinstance(item, Named) and len(item.names) == 1]
        by_name = {item.names[0]: item.form for item in named}
        return by_name if len(by_name) == len(form.items) > 1 and form.joined != "or" else {}
    if isinstance(form, Named) and len(form.names) > 1 and isinstance(form.form, Bracketed):
        if len(form.names) == len(form.form.items):
            return dict(zip(form.names, form.form.items, strict=True))
    return {}


def _oriented(form: Relation) -> Relation:
    """With every sign pointing to the right, where they all point to the left."""
    flipped = {">": "<", ">=": "<="}
    if all(op in flipped for op in form.ops):
        return Relation(tuple(flipped[op] for op in reversed(form.ops)), form.sides[::-1])
    return form


def _difference(form: Relation) -> Expr:
    left, right = (side.tree for side in form.sides if isinstance(side, Value))
    return Expr("add", (left, Expr("neg", (right,))))


def _as_set(form: Form) -> Form | None:
    """The solutions of an inequality in one symbol as an interval; sets as they are; None for anything else."""
    if isinstance(form, Union) and form.op == "setminus":
        return _without_points(form) or form
    if isinstance(form, (Bracketed, Union)):
        return form
    if isinstance(form, Relation) and form.ops == ("!=",) and isinstance(form.sides[0], Value):
        return _punctured([form.sides[1]]) if form.sides[0].tree.op == "sym" else None
    if isinstance(form, Relation) and form.ops == ("in",) and isinstance(form.sides[0], Value):
        return form.sides[1] if form.sides[0].tree.op == "sym" else None
    if isinstance(form, Relation):
        return _interval(_oriented(form))
    if isinstance(form, Several) and not form.braces and len(form.items) > 1 and form.joined != "and":
        parts = [_as_set(item) for item in form.items]
        if all(isinstance(part, Bracketed) for part in parts) and (form.joined == "or" or _disjoint(parts)):
            if form.joined == "or" or all(isinstance(item, Relation) for item in form.items):
                return Union("cup", tuple(part for part in parts if part is not None))
    if isinstance(form, Several) and not form.braces and len(form.items) == 2 and form.joined == "and":
        return _both([_as_set(item) for item in form.items if isinstance(item, Relation)])
    return None


def _without_points(form: Union) -> Union | None:
    r"""``\mathbb{R} \setminus \{0, 1\}`` as a union of intervals; None for any other difference."""
    if len(form.parts) != 2 or form.parts[0] != REALS or not isinstance(form.parts[1], Several):
        return None
    return _punctured(form.parts[1].items)


def _punctured(points: Sequence[Form]) -> Union | None:
    """The real numbers without some rational points, or without one that is not; None where it cannot be written."""
    trees = [point.tree for point in points if isinstance(point, Value) and not symbols(point.tree)]
    if len(trees) != len(points) or not trees:
        return None
    if len(trees) > 1:
        try:
            trees.sort(key=exact)
        except (Inexact, Undefined):
            return None
    ends = [REALS.items[0], *(Value(tree) for tree in trees), REALS.items[1]]
    return Union("cup", tuple(Bracketed("(", ")", pair) for pair in itertools.pairwise(ends)))


def _both(parts: Sequence[Form | None]) -> Bracketed | None:
    """The interval between two half-lines that both must hold: ``x >= 2 and x < 5``."""
    infinity = Expr("const", name="inf")
    low = high = None
    for part in parts:
        if isinstance(part, Bracketed) and part.items[1] == Value(infinity):
            low = part
        elif isinstance(part, Bracketed) and part.items[0] == Value(Expr("neg", (infinity,))):
            high = part
    return Bracketed(low.left, high.right, (low.items[0], high.items[1])) if low and high else None


def _interval(form: Relation) -> Bracketed | None:
    """``a < x``, ``x <= b`` and ``a < x <= b`` as intervals, where a and b do not depend on symbols."""
    if not all(isinstance(side, Value) for side in form.sides) or any(op not in ("<", "<=") for op in form.ops):
        return None
    trees = [side.tree for side in form.sides if isinstance(side, Value)]
    infinity = Expr("const", name="inf")
    match trees:
        case [low, Expr(op="sym"), high]:
            left, right = form.ops
        case [Expr(op="sym"), high]:
            low, left, right = Expr("neg", (infinity,)), "<", form.ops[0]
        case [low, Expr(op="sym")]:
            high, left, right = infinity, form.ops[0], "<"
        case _:
            return None
    if symbols(low) or symbols(high):
        return None
    return Bracketed("[" if left == "<=" else "(", "]" if right == "<=" else ")", (Value(low), Value(high)))


def _disjoint(parts: Sequence[Form | None]) -> bool:
    """Whether two half-lines do not meet, so that a comma between them can only mean "or"."""
    ends = []
    for part in parts:
        if not isinstance(part, Bracketed) or len(part.items) != 2:
            return False
        low, high = (item.tree if isinstance(item, Value) else Expr("") for item in part.items)
        ends.append((low, high))
    ends.sort(key=lambda pair: pair[0].op != "neg" or pair[0].args[0].name != "inf")
    if len(ends) != 2:
        return False
    try:
        return exact(ends[0][1]) <= exact(ends[1][0])
    except (Inexact, Undefined):
        return False


def _rounded(tree: Expr) -> tuple[int, Fraction] | None:
    """(places, value) of a decimal that shows enough digits to be a rounded value."""
    sign, leaf = (-1, tree.args[0]) if tree.op == "neg" else (1, tree)
    if leaf.op != "num" or leaf.places is None or leaf.places < MIN_ROUNDED_DIGITS:
        return None
    digits = str(int(abs(leaf.value) * 10**leaf.places)).strip("0")
    return (leaf.places, sign * leaf.value) if len(digits) >= MIN_ROUNDED_DIGITS else None


def _has_decimals(tree: Expr) -> bool:
    return tree.places is not None or any(map(_has_decimals, tree.args))


def _bare(tree: Expr) -> Expr:
    """Without the marks of how numbers were written."""
    return Expr(tree.op, tuple(map(_bare, tree.args)), tree.name, tree.value)


def _risky(tree: Expr) -> bool:
    """Whether a tree may have no value: then even the same text twice needs evaluation."""
    if tree.op == "const" and tree.name == "inf":
        return False
    inside = any(arg.op == "const" and arg.name == "inf" for arg in tree.args)
    return (inside and tree.op != "neg") or any(map(_risky, tree.args))
