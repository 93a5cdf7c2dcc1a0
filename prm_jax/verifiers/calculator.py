"""A calculator that a model may call in the middle of a response; it evaluates nothing but arithmetic."""

from dataclasses import dataclass
from fractions import Fraction

from prm_jax.rollouts.environments import Feedback
from prm_jax.verifiers.exact_value import Inexact, Undefined, exact
from prm_jax.verifiers.expressions import parse
from prm_jax.verifiers.latex import Unreadable
from prm_jax.verifiers.lexer import tokens
from prm_jax.verifiers.limits import excess, unbalanced
from prm_jax.verifiers.tool_calls import Markers

UNKNOWN = "?"
"""What the model is told about text that is not arithmetic, or has no rational value."""
MAX_ANSWER = 400
"""Longer values are not written out."""


@dataclass(frozen=True)
class Calculator:
    """Answers to an expression between two markers with its exact value.

    Expressions are numbers with ``+ - * / ^ !`` and brackets. Values are whole numbers, decimals where these end, and
    fractions otherwise.

    Attributes:
      markers: of calls and answers.
    """

    markers: Markers = Markers("<calc>", "</calc>", "<result>", "</result>")

    def step(self, action: str) -> Feedback:
        """The calculator as an environment: answers to a turn that ends with a call, and ends the episode otherwise."""
        expression = self.markers.call(action)
        return Feedback(done=True) if expression is None else Feedback(self.markers.answer(self.value(expression)))

    def value(self, expression: str) -> str:
        """The value as text; ``"?"`` where there is none."""
        if excess(expression) or unbalanced(expression):
            return UNKNOWN
        try:
            text = _written(exact(parse(tokens(expression))))
        except (Unreadable, Undefined, Inexact, RecursionError):
            return UNKNOWN
        return text if len(text) <= MAX_ANSWER else UNKNOWN


def _written(value: Fraction) -> str:
    """A fraction as a whole number, a decimal or a fraction, whichever is the first that is exact."""
    digits = 0
    while value.denominator > 1 and digits < 20 and (value * 10**digits).denominator > 1:
        digits += 1
    scaled = value * 10**digits
    if scaled.denominator > 1 or abs(scaled.numerator) >= 10**MAX_ANSWER:
        return UNKNOWN if abs(value.numerator * value.denominator) >= 10**MAX_ANSWER else str(value)
    if not digits:
        return str(scaled.numerator)
    text = str(abs(scaled.numerator)).zfill(digits + 1)
    return f"{'-' if value < 0 else ''}{text[:-digits]}.{text[-digits:]}"
