"""Reading numbers from text as exact fractions."""

import re
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

from prm_jax.verifiers import units

Percent: TypeAlias = Literal["strip", "ratio", "reject"]
"""What 50% is: 50 (the sign is a unit), 1/2, or not a number."""

MAX_LENGTH = 300
"""Longer texts are not numbers; keeps exact arithmetic cheap whatever a model writes."""

MAX_EXPONENT = 300

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([-+]?[0-9]{{1,4}}))?", re.ASCII)
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})", re.ASCII)
_MIXED = re.compile(r"([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)", re.ASCII)
_LATEX = re.compile(
    r"([0-9]*)\s*\\[dt]?frac\s*(?:\{\s*([-+]?[0-9.,]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9.,]+)\s*\}|([0-9]))", re.ASCII
)
_WRAPPED = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**"))
_SPACES = re.compile(r"\\[,!;: ]|\u2009|\u202f|\u00a0")
_MINUS = str.maketrans({"\u2212": "-", "\ufe63": "-", "\u2013": "-"})

_CURRENCY = "$\u20ac\u00a3\u00a5"
_SCALES = {"k": 10**3, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
           "dozen": 12}  # fmt: skip
_SMALL = dict(
    zip(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split(),
        range(20),
        strict=True,
    )
) | dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
_NAMED = re.compile(r"[A-Za-z]\w{0,11}\s*=\s*(?=[^=])", re.ASCII)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox|mathbf|textrm|operatorname)\s*\{([^{}]*)\}")
_SPACED = re.compile(r"(?<![0-9.,/])([1-9][0-9]{0,2}(?:[ '\u2019][0-9]{3})+)(?![0-9/]| ?[0-9])", re.ASCII)
_DOTTED = re.compile(r"[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|[1-9][0-9]{0,2}\.000", re.ASCII)
_DECIMAL_COMMA = re.compile(r"0,[0-9]+", re.ASCII)
_HEAD = re.compile(
    rf"([-+]?\s*(?:\\?[{_CURRENCY}])?\s*[-+]?\s*(?:[0-9]+\s+[0-9]+\s*/\s*[0-9]+|(?:[0-9]+\s*)?\\[dt]?frac\s*(?:\{{[^{{}}]*\}}|[0-9])\s*"
    rf"(?:\{{[^{{}}]*\}}|[0-9])|[0-9.,']*[0-9](?:[eE][-+]?[0-9]{{1,4}}(?![A-Za-z0-9]))?\.?(?:\s*/\s*[0-9.,]*[0-9])?))",
    re.ASCII,
)


class Reading(NamedTuple):
    """A number found in text.

    Attributes:
      value: the number.
      unit: what is written after it, () for nothing.
    """

    value: Fraction
    unit: units.Unit


def parse_number(text: str, *, percent: Percent = "strip") -> Fraction | None:
    r"""Reads one number and nothing else: the strict form.

    Accepted are integers, decimals (``.5``, ``5.``), thousands with commas in the right places, exponents up to
    10**±300, fractions (``3/4``, ``1 3/4``, ``\frac{3}{4}``), a sign (the minus sign of Unicode too), a currency sign
    before it, a percent sign after it, and math delimiters or one full stop around all that. Digits are ASCII.

    Args:
      text: any text.
      percent: what a percent sign means.

    Returns:
      The exact value; None for anything else, including more than ``MAX_LENGTH`` characters.
    """
    if len(text) > MAX_LENGTH:
        return None
    if text.isascii() and text.isdigit():
        return Fraction(int(text))
    body = _unwrap(_SPACES.sub("", text.translate(_MINUS)).strip())
    sign, body = _sign(body)
    body = re.sub(r"^(?:\\\$|[$\u20ac\u00a3\u00a5])\s*", "", body)
    if sign == 1:  # both -$5 and $-5 are written
        sign, body = _sign(body)
    bare = re.sub(r"\s*\\?%$", "", body)
    scale = Fraction(1)
    if bare != body:
        if percent == "reject":
            return None
        scale = Fraction(1, 100) if percent == "ratio" else scale
    value = _unsigned(bare)
    return None if value is None else sign * scale * value


def read_number(text: str) -> Reading | None:
    r"""Reads one number in the ways people write it: the lenient form.

    Beyond ``parse_number``: units and other words after it (``18 dollars``, ``48 km/h``, ``18 \text{ eggs}``), a name
    before it (``x = 18``), thousands separated by spaces, apostrophes or dots (``70 000``, ``1.234.567``, ``70.000``),
    a decimal comma after 0 (``0,5``), ``70k``, ``2 dozen``, and numbers in words (``twenty-one``). Words that deny,
    doubt, compare or add another number make it unreadable.

    Args:
      text: any text.

    Returns:
      The value and its unit (percent is a unit); None for anything else.
    """
    if len(text) > MAX_LENGTH:
        return None
    if text.isascii() and text.isdigit():
        return Reading(Fraction(int(text)), ())
    body = text.translate(_MINUS).replace("\\!", "").replace("{,}", ",")
    body = re.sub(r"\\[,;: ]|\u2009|\u202f|\u00a0|~", " ", body)
    body = _unwrap(_TEXT_COMMAND.sub(r"\1", body).replace("\\$", "$").replace("\\%", "%").replace("$$", ""))
    body = _unwrap(_NAMED.sub("", _loose_dollars(body), count=1).strip())
    body = re.sub(r"^\((-[0-9.,]+)\)$", r"\1", body)
    body = _SPACED.sub(lambda match: re.sub(r"[ '\u2019]", "", match.group()), body)
    head = _HEAD.match(body)
    if head is None:
        return _spelled_out(body)
    value = _lenient_value(head.group(1))
    return None if value is None else _with_unit(value, body[head.end() :], head.group(1))


def _with_unit(value: Fraction, rest: str, head: str) -> Reading | None:
    """The number times a scale that follows it, with the unit after that."""
    scale = re.match(r"\s*(k|hundred|thousand|million|billion|trillion|dozen)(?![A-Za-z])", rest, re.IGNORECASE)
    if scale:
        value, rest = value * _SCALES[scale.group(1).lower()], rest[scale.end() :]
    rest = rest.rstrip(" ,;")
    if re.match(r"\s*[-/^+*=:<>_!'\\,.]", rest) or re.match(r"[eE](?![A-Za-z])", rest) or re.match(r"x[0-9]", rest):
        return None
    if re.search(r"(?<![\^{])[0-9]", rest) and not re.fullmatch(r"\s*[A-Za-z/ ]+[0-9]", rest):
        return None
    unit = units.read_unit(rest.strip(" *"))
    if unit is None:
        return None
    return Reading(value, unit or ((("money", 1),) if re.search(rf"[{_CURRENCY}]", head) else ()))


def _lenient_value(head: str) -> Fraction | None:
    sign, body = _sign(head.strip())
    body = re.sub(rf"^[{_CURRENCY}]\s*", "", body)
    if sign == 1:
        sign, body = _sign(body)
    body = body.removesuffix(".") if body.endswith(".") else body
    if _DOTTED.fullmatch(body):
        body = body.replace(".", "").replace(",", ".")
    elif _DECIMAL_COMMA.fullmatch(body):
        body = body.replace(",", ".")
    value = _unsigned(body)
    return None if value is None else sign * value


def _loose_dollars(body: str) -> str:
    """Without math delimiters in the middle: ``$18$ dollars`` is ``18 dollars``; currency signs stay."""
    return re.sub(r"\$\s*([^$]*?)\s*\$", r"\1", body) if body.count("$") == 2 else body


def _spelled_out(body: str) -> Reading | None:
    """``twenty-one eggs``: number words, then a unit."""
    words = re.findall(r"[a-z]+|\S", body.lower().replace("-", " "))
    if len(words) > 24:
        return None
    negative = bool(words) and words[0] in ("minus", "negative")
    total = current = 0
    used = 1 if negative else 0
    last = "start"
    for word in words[used:]:
        if word in _SMALL:
            unit_digit = _SMALL[word] < 10
            if last == "small" or (last == "tens" and not (unit_digit and _SMALL[word])):
                return None
            current += _SMALL[word]
            last = "tens" if _SMALL[word] >= 20 else "small"
        elif word in ("hundred", "dozen") and last in ("small", "tens"):
            current, last = current * _SCALES[word], "scale"
        elif word in ("thousand", "million", "billion", "trillion") and last != "start":
            total, current, last = total + current * _SCALES[word], 0, "scale"
        elif word == "and" and last == "scale" and words[used + 1 : used + 2] and words[used + 1] in _SMALL:
            pass
        else:
            break
        used += 1
    if last == "start":
        return None
    unit = units.read_unit(" ".join(words[used:]).strip(" .,"))
    value = Fraction(total + current)
    return None if unit is None else Reading(-value if negative else value, unit)


def _unwrap(body: str) -> str:
    """Without math delimiters around it and a full stop after it."""
    for _ in range(8):
        before = body = body.strip()
        if body.endswith(".") and not body.endswith(".."):
            body = body[:-1].rstrip()
        for left, right in _WRAPPED:
            if len(body) >= len(left) + len(right) and body.startswith(left) and body.endswith(right):
                body = body[len(left) : -len(right)]
                break
        if body == before:
            break
    return body.strip()


def _sign(body: str) -> tuple[int, str]:
    if body[:1] in ("-", "+"):
        return (-1 if body[0] == "-" else 1), body[1:].lstrip()
    return 1, body


def _unsigned(body: str) -> Fraction | None:
    if match := _PLAIN.fullmatch(body):
        exponent = int(match.group(2) or 0)
        return _decimal(match.group(1)) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    if match := _RATIO.fullmatch(body):
        return _divide(_decimal(match.group(1)), _decimal(match.group(2)))
    if match := _MIXED.fullmatch(body):
        part = _divide(Fraction(match.group(2)), Fraction(match.group(3)))
        return None if part is None else Fraction(match.group(1)) + part
    if match := _LATEX.fullmatch(body):
        return _latex_fraction(match)
    return None


def _latex_fraction(match: re.Match[str]) -> Fraction | None:
    whole, *parts = match.groups()
    top, bottom = (parse_number(part) for part in (parts[0] or parts[1], parts[2] or parts[3]))
    if top is None or bottom is None or (whole and top < 0):
        return None
    part = _divide(top, bottom)
    return None if part is None else Fraction(whole or 0) + part


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").removesuffix(".") or 0)


def _divide(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None
