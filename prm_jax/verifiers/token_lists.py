"""Operations on lists of tokens: brackets, separators, and the unit around a value."""

from collections.abc import Sequence

from prm_jax.verifiers import units
from prm_jax.verifiers.latex import Token, Unreadable

_OPEN, _CLOSE = ("(", "[", "{", "\\{", "langle"), (")", "]", "}", "\\}", "rangle")
_FUNCTIONS_OF_ANGLES = ("sin", "cos", "tan", "cot", "sec", "csc")
_CURRENCY = ("$", "\u20ac", "\u00a3", "\u00a5", "\u00a2")


def outer_braces(found: Sequence[Token]) -> list[Token]:
    """Without braces that enclose everything."""
    rest = list(found)
    while len(rest) > 1 and rest[0].text == "{" and matching(rest, 0) == len(rest) - 1:
        rest = rest[1:-1]
    return rest


def matching(found: Sequence[Token], start: int) -> int:
    """Where the bracket opened at ``start`` is closed, whatever closes it; -1 if nowhere."""
    depth = 0
    for index in range(start, len(found)):
        text = found[index].text if found[index].kind in ("op", "cmd") else ""
        depth += (text in _OPEN) - (text in _CLOSE)
        if depth == 0:
            return index
    return -1


def split(found: Sequence[Token], separators: Sequence[str]) -> tuple[list[list[Token]], list[str]]:
    """Parts between separators outside brackets, and the separators."""
    parts: list[list[Token]] = [[]]
    used: list[str] = []
    depth = 0
    for token in found:
        text = token.text if token.kind != "name" else ""
        if token.kind in ("op", "cmd"):
            depth += (text in _OPEN) - (text in _CLOSE)
        if depth == 0 and token.kind in ("op", "cmd", "and", "or") and text in separators:
            parts.append([])
            used.append(text)
        else:
            parts[-1].append(token)
    return parts, used


def without_unit(found: Sequence[Token]) -> tuple[list[Token], units.Unit]:
    """The tokens without currency signs before, and units after, the value."""
    rest, before = _without_currency(list(found))
    if len(rest) > 1 and rest[-1].text in ("%", "degree"):
        return rest[:-1], (("percent" if rest[-1].text == "%" else "degree", 1),)
    if len(rest) > 2 and rest[-1].text in ("C", "F") and rest[-2].text in ("circ", "}", "degree"):
        inner, unit = without_unit(rest[:-1])
        if unit == (("degree", 1),):
            return inner, ((f"degree {rest[-1].text.lower()}", 1),)
    for circle in (["^", "circ"], ["^", "{", "circ", "}"], ["^", "degree"]):
        if [token.text for token in rest[-len(circle) :]] == circle and len(rest) > len(circle):
            function = any(token.text in _FUNCTIONS_OF_ANGLES for token in rest)
            return (rest, before) if function else (rest[: -len(circle)], (("degree", 1),))
    start = len(rest)
    while start > 1 and _may_be_unit(rest[start - 1]):
        start -= 1
    while start < len(rest) and not _starts_unit(rest, start):
        start += 1
    if start == len(rest):
        return rest, before
    text = " ".join(token.text for token in rest[start:])
    after = units.read_unit(text.replace("cdot", "\u00b7"))
    if after is None:
        raise Unreadable(f"{text!r} after the value is not a unit")
    inner, more = without_unit(rest[:start]) if start > 1 else (rest[:start], ())
    if before and after and all(power < 0 for _, power in after):
        return inner, tuple(sorted((*before, *after)))
    return inner, after if after and after != (("unit", 1),) else more or after or before


def _without_currency(rest: list[Token]) -> tuple[list[Token], units.Unit]:
    equals = [index + 1 for index, token in enumerate(rest[:6]) if token.text == "="]
    for index in (0, *equals, 1):
        if len(rest) > index + 1 and rest[index].text in _CURRENCY and (index != 1 or rest[0].text in ("-", "+", "=")):
            return _without_currency(rest[:index] + rest[index + 1 :])[0], (("money", 1),)
    if len(rest) > 1 and rest[-1].text in _CURRENCY:
        return rest[:-1], (("cent" if rest[-1].text == "\u00a2" else "money", 1),)
    return rest, ()


def _may_be_unit(token: Token) -> bool:
    return token.kind == "text" or token.text in ("^", "/", "cdot", "{", "}", "-", "(", ")") or token.kind == "num"


def _starts_unit(rest: Sequence[Token], start: int) -> bool:
    """Whether the words of a unit start here; one letter that is e or i is a number."""
    token = rest[start]
    depth = sum((t.text in _OPEN) - (t.text in _CLOSE) for t in rest[:start])
    return (
        token.kind == "text" and depth == 0 and token.text not in ("e", "i") and rest[start - 1].text not in ("_", "^")
    )
