"""The exact rational value of an expression, where it has one."""

import math
from fractions import Fraction

from prm_jax.verifiers.expressions import Expr

MAX_BITS = 300_000
"""Larger numbers are not computed; numbers of this size take about a millisecond per operation."""

MAX_FACTORIAL = 3_000


class Undefined(ArithmeticError):
    """The expression has no value: a division by zero, for example."""


class Inexact(ArithmeticError):
    """The value is irrational, depends on a symbol, or is too large to compute exactly."""


def exact(tree: Expr) -> Fraction:
    """The value of a tree as a fraction.

    Raises:
      Undefined: when it has none.
      Inexact: when it is not a rational number of moderate size, or not known to be one.
    """
    match tree.op:
        case "num":
            return tree.value
        case "neg":
            return -exact(tree.args[0])
        case "add":
            return _bounded(exact(tree.args[0]) + exact(tree.args[1]))
        case "mul":
            return _bounded(exact(tree.args[0]) * exact(tree.args[1]))
        case "div":
            return _divide(exact(tree.args[0]), exact(tree.args[1]))
        case "pow":
            return _power(exact(tree.args[0]), exact(tree.args[1]))
        case "root":
            return _root(exact(tree.args[0]), exact(tree.args[1]))
        case "abs":
            return abs(exact(tree.args[0]))
        case "floor":
            return Fraction(math.floor(exact(tree.args[0])))
        case "ceil":
            return Fraction(math.ceil(exact(tree.args[0])))
        case "fact":
            return Fraction(math.factorial(_natural(exact(tree.args[0]))))
        case "binom":
            return Fraction(math.comb(*(_natural(exact(arg)) for arg in tree.args)))
        case _:
            raise Inexact


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if not bottom:
        raise Undefined("a division by zero")
    return _bounded(top / bottom)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _root(_power(base, Fraction(exponent.numerator)), Fraction(exponent.denominator))
    if not base and exponent <= 0:
        raise Undefined("zero to a power that is not positive")
    if abs(base) != 1 and _bits(base) * abs(exponent.numerator) > MAX_BITS:
        raise Inexact
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    return base**exponent.numerator


def _root(value: Fraction, degree: Fraction) -> Fraction:
    if degree.denominator != 1 or not 0 < degree <= 64 or _bits(value) > 4096:
        raise Inexact
    if value < 0:
        raise Inexact
    top, bottom = (_integer_root(part, degree.numerator) for part in (value.numerator, value.denominator))
    return Fraction(top, bottom)


def _integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    if low**degree != value:
        raise Inexact
    return low


def _natural(value: Fraction) -> int:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise Inexact
    return value.numerator


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise Inexact
    return value
