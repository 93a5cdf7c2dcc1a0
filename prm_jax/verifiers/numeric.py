"""Comparing expressions that have no exact rational value, by evaluation to many digits with mpmath.

Runs only in the processes of ``math_pool``, which may be killed at any time. Constants are compared at growing
precision: a difference that stops changing as digits are added is real, however small; one that keeps shrinking is
rounding. Expressions with symbols are compared at points where both have values.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from prm_jax.verifiers.exact_value import Undefined
from prm_jax.verifiers.expressions import Expr, symbols

CONSTANT_DIGITS = (60, 200, 1200)
LARGE_EXPONENT_DIGITS = (60, 400, 7000)
POINT_DIGITS = (60, 400)
MIN_POINTS = 3

_RENAMED = {
    "ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "arccsch": "acsch",
    "arcsech": "asech", "arccoth": "acoth",
}  # fmt: skip
_KNOWN = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch exp log asin acos atan acot asec acsc asinh acosh atanh "
    "acsch asech acoth".split()
)

# (low, high, natural): symbols are multiples of 1/997 between low and high, or natural numbers, used only where
# there are too few other points, for expressions such as (-1)^n. Logarithms and roots need points of each range.
_POINTS: tuple[tuple[int, int, bool], ...] = (
    *((100 + 37 * k, 1300, False) for k in range(2)),
    *((-2600 + 41 * k, 2600, False) for k in range(2)),
    *((-870 + k, 870, False) for k in range(2)),
    *((1000 + k, 30_000, False) for k in range(2)),
    *((1, 30, True) for _ in range(6)),
)


Point: TypeAlias = Callable[[], Mapping[str, Any]]
"""Makes the values of all symbols at the current precision."""


def equal(a: Expr, b: Expr) -> bool:
    """Whether two expressions have the same value, wherever both have one.

    Raises:
      Undefined: when either has no value.
    """
    names = sorted(symbols(a) | symbols(b))
    large = _large(a) or _large(b)
    if not names:
        return _agree(lambda: (value(a, {}), value(b, {})), LARGE_EXPONENT_DIGITS if large else CONSTANT_DIGITS)
    digits = LARGE_EXPONENT_DIGITS if large else POINT_DIGITS
    return _at_points(names, a, b, lambda point: _agree(lambda: (value(a, point()), value(b, point())), digits))


def proportional(a: Expr, b: Expr, *, positive: bool) -> bool:
    """Whether ``a = c b`` for one constant c that is not 0, positive if so wished."""
    names = sorted(symbols(a) | symbols(b))
    if not names:
        return False
    first: list[Point] = []

    def check(point: Point) -> bool:
        if not first:
            a0, b0 = value(a, point()), value(b, point())
            if min(abs(a0), abs(b0)) < mpmath.mpf(10) ** -40 or (positive and mpmath.re(a0 / b0) <= 0):
                return False
            first.append(point)
            return True
        return _agree(
            lambda: (value(a, point()) * value(b, first[0]()), value(a, first[0]()) * value(b, point())), POINT_DIGITS
        )

    return _at_points(names, a, b, check) and bool(first)


def rounds_to(tree: Expr, decimal: Fraction, places: int) -> bool:
    """Whether a constant, rounded to so many decimal places, is the decimal."""
    if symbols(tree):
        return False
    with mpmath.workdps(60 + places):
        found = value(tree, {})
        if mpmath.im(found) or not mpmath.isfinite(found):
            return False
        return bool(abs(mpmath.re(found) - _real(decimal)) <= mpmath.mpf(10) ** -places / 2)


def measure(tree: Expr) -> None:
    """Evaluates an expression once, to find out whether it can be evaluated at all."""
    names = sorted(symbols(tree))
    with mpmath.workdps(max(LARGE_EXPONENT_DIGITS if _large(tree) else CONSTANT_DIGITS) if not names else 60):
        try:
            value(tree, {name: mpmath.mpf(1) / (k + 3) for k, name in enumerate(names)})
        except Undefined:
            pass


def _at_points(names: Sequence[str], a: Expr, b: Expr, check: Callable[[Point], bool]) -> bool:
    """Whether ``check`` holds at all points where a and b are real, or complex because they contain i.

    At least three such points are needed; natural numbers are used where there are too few others.
    """
    complex_allowed = _has_i(a) or _has_i(b)
    used = 0
    for index, (low, high, natural) in enumerate(_POINTS):
        if natural and used >= MIN_POINTS:
            break
        point = functools.partial(_point, tuple(names), index, low, high, natural)
        with mpmath.workdps(POINT_DIGITS[0]):
            try:
                values = [value(tree, point()) for tree in (a, b)]
            except Undefined:
                continue
            kinds = [abs(mpmath.im(v)) > mpmath.mpf(10) ** -40 * (1 + abs(v)) for v in values]
            if not all(mpmath.isfinite(v) for v in values) or (any(kinds) and not complex_allowed):
                continue
            used += 1
            if not check(point):
                return False
    return used >= MIN_POINTS


def _point(names: tuple[str, ...], index: int, low: int, high: int, natural: bool) -> dict[str, Any]:
    """A value for every symbol, the same for a name in every expression."""
    point = {}
    for name in names:
        drawn = low + zlib.crc32(f"{name} {index}".encode()) % (high - low)
        point[name] = mpmath.mpf(drawn) if natural else mpmath.mpf(drawn) / 997
    return point


def _agree(values: Callable[[], tuple[Any, Any]], levels: Sequence[int]) -> bool:
    previous: Any = None
    difference: Any = 0
    scale: Any = 1
    for digits in levels:
        with mpmath.workdps(digits):
            x, y = values()
            if not (mpmath.isfinite(x) and mpmath.isfinite(y)):
                return bool(x == y)
            difference = x - y
            scale = max(abs(x), abs(y), 1)
            if previous is not None and difference and abs(difference - previous) < abs(difference) / 10:
                return False
            previous = difference
    with mpmath.workdps(30):
        return bool(abs(difference) <= scale * mpmath.mpf(10) ** -int(0.8 * levels[-1]))


def value(tree: Expr, point: Mapping[str, Any]) -> Any:
    """The value of a tree, real or complex, at the current precision.

    Raises:
      Undefined: when it has none.
    """
    try:
        result = _value(tree, point)
    except (ZeroDivisionError, ValueError) as error:
        raise Undefined(str(error)) from error
    if mpmath.isnan(result):
        raise Undefined("not a number")
    return result


def _value(tree: Expr, point: Mapping[str, Any]) -> Any:
    match tree.op:
        case "num":
            return _real(tree.value)
        case "sym":
            return point[tree.name]
        case "const":
            return _constant(tree.name)
    args = [_value(arg, point) for arg in tree.args]
    match tree.op:
        case "neg":
            return -args[0]
        case "add":
            return args[0] + args[1]
        case "mul":
            return args[0] * args[1]
        case "div":
            return args[0] / args[1]
        case "pow":
            if not args[0] and mpmath.re(args[1]) <= 0:
                raise Undefined("zero to a power that is not positive")
            return args[0] ** args[1]
        case "root":
            return _root(args[0], args[1])
        case "abs":
            return abs(args[0])
        case "floor":
            return mpmath.floor(args[0])
        case "ceil":
            return mpmath.ceil(args[0])
        case "fact":
            return mpmath.factorial(args[0])
        case "binom":
            return mpmath.binomial(args[0], args[1])
        case "log":
            return mpmath.log(args[0]) / mpmath.log(args[1])
        case _:
            return _call(tree.name, args)


def _call(name: str, args: list[Any]) -> Any:
    function = _RENAMED.get(name, name)
    if function in _KNOWN and len(args) == 1:
        return getattr(mpmath, function)(args[0])
    if name in ("max", "min"):
        return (max if name == "max" else min)(args, key=mpmath.re)
    if name in ("gcd", "lcm"):
        args = sorted(args, key=mpmath.re)
    # A function that is not known: any fixed smooth function of its arguments that no expression imitates.
    seed = 2 + zlib.crc32(name.encode()) % 1000
    return mpmath.cos(sum(arg * mpmath.sqrt(seed + 7 * k) for k, arg in enumerate(args)) + mpmath.sqrt(seed + 3))


def _constant(name: str) -> Any:
    match name:
        case "pi":
            return +mpmath.pi
        case "e":
            return +mpmath.e
        case "i":
            return mpmath.mpc(0, 1)
        case "deg":
            return mpmath.pi / 180
        case _:
            return mpmath.inf


def _root(base: Any, degree: Any) -> Any:
    if not degree:
        raise Undefined("a root of degree 0")
    odd = not mpmath.im(degree) and mpmath.isint(degree) and int(degree) % 2
    if odd and not mpmath.im(base) and mpmath.re(base) < 0:
        return -((-base) ** (1 / degree))
    if degree == 2:
        return mpmath.sqrt(base)
    return base ** (1 / degree)


def _real(number: Fraction) -> Any:
    return mpmath.mpf(number.numerator) / number.denominator


def _has_i(tree: Expr) -> bool:
    return (tree.op == "const" and tree.name == "i") or any(map(_has_i, tree.args))


def _large(tree: Expr) -> bool:
    """Whether a number of at least 100 occurs below a power, factorial or exponential."""
    if tree.op in ("pow", "fact", "binom") or (tree.op == "call" and tree.name == "exp"):
        return _largest(tree) >= 100
    return any(map(_large, tree.args))


def _largest(tree: Expr) -> Fraction:
    return max([abs(tree.value), *map(_largest, tree.args)])
