"""Units after (or before) a value: read as products of words with powers, and compared."""

import functools
import re
from collections.abc import Mapping
from typing import TypeAlias

Unit: TypeAlias = tuple[tuple[str, int], ...]
"""(word, power) pairs, sorted; () for no unit."""

UNREADABLE_WORDS = frozenset(
    "or and not no nor either neither maybe perhaps if unless but except than times plus minus over under about "
    "approximately around roughly nearly almost more less fewer least most dozen hundred thousand million billion "
    "trillion half halves third thirds quarter quarters double twice thrice wait actually otherwise instead is "
    "are was were equals equal becomes zero one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
    "ninety k m bn to from between".split()
)
"""Words that change a value, doubt it or add another: text with one of them is not a unit."""

_CANONICAL: Mapping[str, str] = {
    **dict.fromkeys(("dollar", "dollars", "usd", "buck", "bucks", "euro", "euros", "eur", "gbp", "yen", "rupee",
                     "rupees", "yuan", "$", "\u20ac", "\u00a3", "\u00a5", "pesos", "peso"), "money"),
    **dict.fromkeys(("cent", "cents", "\u00a2", "pence"), "cent"),
    **dict.fromkeys(("%", "percent", "percents", "percentage", "pct"), "percent"),
    **dict.fromkeys(("degree", "degrees", "deg", "\u00b0"), "degree"),
    **dict.fromkeys(("unit", "units"), "unit"),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), "meter"),
    **dict.fromkeys(("cm", "cms", "centimeter", "centimeters", "centimetre", "centimetres"), "centimeter"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), "millimeter"),
    **dict.fromkeys(("km", "kms", "kilometer", "kilometers", "kilometre", "kilometres"), "kilometer"),
    **dict.fromkeys(("in", "inch", "inches"), "inch"),
    **dict.fromkeys(("ft", "foot", "feet"), "foot"),
    **dict.fromkeys(("yd", "yds", "yard", "yards"), "yard"),
    **dict.fromkeys(("mi", "mile", "miles"), "mile"),
    **dict.fromkeys(("g", "gram", "grams", "gm"), "gram"),
    **dict.fromkeys(("kg", "kgs", "kilogram", "kilograms"), "kilogram"),
    **dict.fromkeys(("mg", "milligram", "milligrams"), "milligram"),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), "pound"),
    **dict.fromkeys(("oz", "ounce", "ounces"), "ounce"),
    **dict.fromkeys(("l", "liter", "liters", "litre", "litres"), "liter"),
    **dict.fromkeys(("ml", "milliliter", "milliliters", "millilitre", "millilitres"), "milliliter"),
    **dict.fromkeys(("gal", "gallon", "gallons"), "gallon"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "hour"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "minute"),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "second"),
    **dict.fromkeys(("day", "days"), "day"),
    **dict.fromkeys(("week", "weeks", "wk"), "week"),
    **dict.fromkeys(("month", "months"), "month"),
    **dict.fromkeys(("yr", "yrs", "year", "years"), "year"),
    **dict.fromkeys(("rad", "radian", "radians"), "radian"),
    **dict.fromkeys(("j", "joule", "joules"), "joule"),
    **dict.fromkeys(("n", "newton", "newtons"), "newton"),
    **dict.fromkeys(("w", "watt", "watts"), "watt"),
    **dict.fromkeys(("v", "volt", "volts"), "volt"),
    **dict.fromkeys(("hz", "hertz"), "hertz"),
    **dict.fromkeys(("mol", "mole", "moles"), "mole"),
    **dict.fromkeys(("person", "people", "persons"), "person"),
    **dict.fromkeys(("child", "children"), "child"),
}  # fmt: skip
_COMPOUND: Mapping[str, Unit] = {
    "mph": (("hour", -1), ("mile", 1)),
    "kph": (("hour", -1), ("kilometer", 1)),
    "kmh": (("hour", -1), ("kilometer", 1)),
    "kmph": (("hour", -1), ("kilometer", 1)),
    "mps": (("meter", 1), ("second", -1)),
    "fps": (("foot", 1), ("second", -1)),
    "sqft": (("foot", 2),),
}
_IGNORED = frozenset("a an the of old total each every long tall wide high apart away altogether".split())

KNOWN = frozenset(word for word in (*_CANONICAL, *_COMPOUND) if len(word) > 1 and word.isalpha() and word != "rad")
"""Units that are recognised after a value in mathematics even when they are not in ``\\text``."""

_PIECE = re.compile(
    r"[A-Za-z]+|[%$\u00b0\u20ac\u00a3\u00a5\u00a2]|\^\s*\{?\s*-?\s*[0-9]+\s*\}?|-?[0-9]+|[/\u00b7*]|[\s.,'()\\-]+"
)
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTER = {"squared": 2, "cubed": 3}


@functools.lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    r"""A unit from its words, such as ``cm^2``, ``square inches``, ``km/h``, ``years old`` or ``red apples``.

    Args:
      text: without ``\text``.

    Returns:
      The unit, () for words that add nothing; None for text that is not a unit: words of number, comparison, negation
      or doubt, numbers that are not powers, other characters.
    """
    if len(text) > 120:
        return None
    text = re.sub(r"\bin (?:total|all)\b", "", text).replace("\u00b2", "^2").replace("\u00b3", "^3")
    powers: dict[str, int] = {}
    sign, upcoming, last = 1, 1, ""
    at = 0
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            return None
        at = match.end()
        written = match.group()
        piece = re.sub(r"[\s^{}]", "", written).lower()
        if piece in ("/", "per"):
            sign = -1
        elif piece.lstrip("-").isdigit():
            if (
                not last
                or abs(int(piece)) > 9
                or not ("^" in written or piece in ("2", "3") and text[match.start() - 1].isalpha())
            ):
                return None
            powers[last] += (int(piece) - 1) * (1 if powers[last] > 0 else -1)
        elif piece in _AFTER and last:
            powers[last] *= _AFTER[piece]
        elif piece in _POWERS:
            upcoming = _POWERS[piece]
        elif piece in UNREADABLE_WORDS and piece != "m":
            return None
        elif piece in _COMPOUND:
            for word, power in _COMPOUND[piece]:
                powers[word] = powers.get(word, 0) + power * sign
        elif piece and piece not in _IGNORED and (piece.isalpha() or piece in _CANONICAL):
            if len(piece) == 1 and piece not in _CANONICAL:
                if last != "degree":
                    return None
                powers.pop(last)  # degrees Celsius are one unit
                piece = "degree " + piece
            last = _CANONICAL.get(piece) or _singular(piece)
            powers[last] = powers.get(last, 0) + sign * upcoming
            upcoming = 1
    if len(powers) > 1:
        powers.pop("unit", None)
    return tuple(sorted((word, power) for word, power in powers.items() if power))


def compatible(wanted: Unit, found: Unit, *, strict: bool = False) -> bool:
    """Whether an answer's unit fits the reference's.

    Equal units fit. Unless ``strict``, so does a unit on one side only, and the word "units" stands for any unit of
    the same power.
    """
    if wanted == found:
        return True
    if strict:
        return False
    if not wanted or not found or found == (("unit", 1),):
        return True
    if wanted == (("money", 1),) and ("money", 1) in found:  # $5 per hour
        return True
    if any(dict(unit).get("unit") for unit in (wanted, found)):
        return sorted(power for _, power in wanted) == sorted(power for _, power in found)
    return False


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word
