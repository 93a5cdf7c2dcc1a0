r"""The form of an answer: a value, a list, a set, a tuple or interval, a union, a relation, a matrix, and so on.

``read`` turns LaTeX into an ``Answer``; ``prm_jax.verifiers.comparison`` compares two of them.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TypeAlias

from prm_jax.verifiers import units
from prm_jax.verifiers.expressions import GREEK, Expr, number, parse
from prm_jax.verifiers.latex import FUNCTIONS, TEXT, Token, Unreadable, clean, plain, tokens

MAX_ITEMS = 60


@dataclasses.dataclass(frozen=True)
class Value:
    """One expression."""

    tree: Expr


@dataclasses.dataclass(frozen=True)
class Several:
    """Values without an order: ``1, 2``, ``\\{1, 2\\}``, ``1 or 2``; no items for the empty set.

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
    """Sides with relations between them: ``a < b \\le c``; at least two sides."""

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
    unit: units.Unit
    tokens: tuple[str, ...]


_RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "in": "in", "ne": "!=", "equiv": "equiv"}
_OPEN, _CLOSE = ("(", "[", "{", "\\{", "langle"), (")", "]", "}", "\\}", "rangle")
_BASES = dict(zip("two three four five six seven eight nine ten twelve sixteen".split(), (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)))
_BASED = re.compile(
    r"\(?([0-9A-Fa-f]+(?:\.[0-9A-F]+)?)\)?\s*(?:_\s*\{?\s*\(?|\s+base\s+|_?\{?base\s*)([0-9]{1,2}|[a-z]+)\)?\s*\}?", re.ASCII
)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s*m\.?)?(?: ?o'?clock)?", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*(?:\.?,? [A-Za-z]+(?:['-][A-Za-z]+)*)*")
_ASSIGNED = re.compile(r"[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=\s*")
_GENERIC_UNIT = re.compile(r"\s(?:square |cubic )?units?$")


@functools.lru_cache(maxsize=8192)
def read(latex: str, *, strict: bool = False) -> Answer:
    """The form and unit of an answer.

    Args:
      latex: within the limits of ``prm_jax.verifiers.limits``.
      strict: do not read ``70 000`` as one number.

    Raises:
      Unreadable: for anything else than one answer.
    """
    words = plain(latex)
    if special := _SPECIAL.get(words.lower().replace("the ", "")):
        return Answer(special, (), ("words", words.lower()))
    if based := _BASED.fullmatch(words.replace("{", "").replace("}", "")):
        known = str(_BASES.get(based.group(2), based.group(2)))
        if known.isdigit() and all(int(digit, 36) < int(known) for digit in based.group(1).replace(".", "")):
            return Answer(_based(based.group(1), known), (), ("base", words))
    if clock := _CLOCK.fullmatch(words):
        parts = tuple(_natural(part) for part in clock.groups()[:3] if part)
        return Answer(Colon(parts, (clock.group(4) or "").lower()), (), ("clock", words.lower()))
    found = tokens(latex, spaced_thousands=not strict, known_words=units.KNOWN)
    texts = tuple(token.text for token in found)
    stripped, unit = _without_unit(found)
    return Answer(_form(_outer_braces(stripped), 0), unit, texts)


def is_words(latex: str) -> bool:
    r"""Whether a reference is words rather than mathematics: ``\text{east}``, ``east``, ``\text{June 20}``.

    Up to three letters without ``\text`` may be a product; a longer run is a word, which its anagram does not equal.
    """
    words = plain(latex)
    if not re.search("[A-Za-z]", words) or words.lower() in _SPECIAL:
        return False
    cleaned = clean(latex)
    marked = [match.group(1) or match.group(2) or "" for match in TEXT.finditer(cleaned)]
    if marked:
        rest = TEXT.sub("", cleaned)
        only_words = not re.search(r"[^\s0-9.,()']", rest) and not any(content.strip() in FUNCTIONS for content in marked)
        return only_words and not (_CLOCK.fullmatch(words) or _BASED.fullmatch(words)) and words.lstrip("(")[:1].isalpha()
    if not _WORDS.fullmatch(words) or "\\" in cleaned or "_" in cleaned:
        return False
    split = words.split()
    return any(len(word) > 3 for word in split) and not any(word in (*FUNCTIONS, "pi") for word in split)


def unassigned(words: str) -> str:
    """Words without a name before them: ``n = east`` is ``east``."""
    return _ASSIGNED.sub("", words, count=1) if _ASSIGNED.match(words) else words


def same_words(wanted: str, found: str) -> bool:
    """Whether two texts consist of the same words, in any case, without articles, brackets and punctuation."""
    return _bare_words(wanted) == _bare_words(found)


def _bare_words(latex: str) -> str:
    words = re.sub(r"[(){}\\$,.;:!\"'*]", " ", unassigned(plain(latex)).lower()).split()
    text = " ".join(word for word in words if word not in ("the", "a", "an", "option", "choice"))
    return _GENERIC_UNIT.sub("", text)


def _natural(digits: str) -> Expr:
    return number(int(digits))


def _without_unit(found: Sequence[Token]) -> tuple[list[Token], units.Unit]:
    """The tokens without currency signs before, and units after, the value."""
    rest, before = _without_currency(list(found))
    if len(rest) > 1 and rest[-1].text in ("%", "degree"):
        return rest[:-1], (("percent" if rest[-1].text == "%" else "degree", 1),)
    for circle in (["^", "circ"], ["^", "{", "circ", "}"], ["^", "degree"]):
        if [token.text for token in rest[-len(circle) :]] == circle and len(rest) > len(circle):
            function = any(token.text in ("sin", "cos", "tan", "cot", "sec", "csc") for token in rest)
            return (rest, before) if function else (rest[: -len(circle)], (("degree", 1),))
    start = len(rest)
    while start > 1 and _may_be_unit(rest[start - 1]):
        start -= 1
    while start < len(rest) and not _starts_unit(rest, start):
        start += 1
    if start == len(rest):
        return rest, before
    text = " ".join(token.text for token in rest[start:])
    unit = units.read_unit(text.replace("cdot", "\u00b7"))
    if unit is None:
        raise Unreadable(f"{text!r} after the value is not a unit")
    inner, more = _without_unit(rest[:start]) if start > 1 else (rest[:start], ())
    return inner, unit if unit and unit != (("unit", 1),) else more or unit or before


def _without_currency(rest: list[Token]) -> tuple[list[Token], units.Unit]:
    signs = ("$", "\u20ac", "\u00a3", "\u00a5", "\u00a2")
    equals = [index + 1 for index, token in enumerate(rest[:6]) if token.text == "="]
    for index in (0, *equals, 1):
        if len(rest) > index + 1 and rest[index].text in signs and (index != 1 or rest[0].text in ("-", "+", "=")):
            return _without_currency(rest[:index] + rest[index + 1 :])[0], (("money", 1),)
    if len(rest) > 1 and rest[-1].text in signs:
        return rest[:-1], (("cent" if rest[-1].text == "\u00a2" else "money", 1),)
    return rest, ()


def _may_be_unit(token: Token) -> bool:
    return token.kind == "text" or token.text in ("^", "/", "cdot", "{", "}", "-", "(", ")") or token.kind == "num"


def _starts_unit(rest: Sequence[Token], start: int) -> bool:
    """Whether the words of a unit start here; one letter that is e or i is a number."""
    token = rest[start]
    depth = sum((t.text in _OPEN) - (t.text in _CLOSE) for t in rest[:start])
    return token.kind == "text" and depth == 0 and token.text not in ("e", "i") and rest[start - 1].text not in ("_", "^")


def _outer_braces(found: Sequence[Token]) -> list[Token]:
    """Without braces that enclose everything."""
    rest = list(found)
    while len(rest) > 1 and rest[0].text == "{" and _matching(rest, 0) == len(rest) - 1:
        rest = rest[1:-1]
    return rest


def _matching(found: Sequence[Token], start: int) -> int:
    """Where the bracket opened at ``start`` is closed, whatever closes it; -1 if nowhere."""
    depth = 0
    for index in range(start, len(found)):
        text = found[index].text if found[index].kind in ("op", "cmd") else ""
        depth += (text in _OPEN) - (text in _CLOSE)
        if depth == 0:
            return index
    return -1


def _split(found: Sequence[Token], separators: Sequence[str]) -> tuple[list[list[Token]], list[str]]:
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


def _form(found: list[Token], level: int) -> Form:
    found = _outer_braces(found)
    if not found:
        raise Unreadable("nothing where a value was expected")
    if level > 6:
        raise Unreadable("nested too deep")
    if found[0].text == "begin":
        return _matrix(found, None)
    if french := _reversed_brackets(found, level):
        return french
    parts, used = _split(found, (",", ";", "and", "or"))
    if used:
        return _several(parts, used, level)
    parts, used = _split(found, tuple(_RELATIONS))
    if used:
        return _relation(parts, [_RELATIONS[text] for text in used], level)
    parts, used = _split(found, ("cup", "cap", "setminus"))
    if used:
        if len(set(used)) > 1:
            raise Unreadable("different set operations")
        return Union(used[0], tuple(_form(part, level + 1) for part in parts))
    parts, used = _split(found, (":",))
    if used:
        return Colon(tuple(parse(part) for part in parts))
    if _matching(found, 0) == len(found) - 1 and (bracketed := _bracketed(found, level)):
        return bracketed
    if any(token.text == "begin" for token in found):
        return _scaled_matrix(found)
    if found[0].text in ("emptyset", "setR", "setZ", "setQ", "setN", "setC"):
        return _named_set(found)
    return _value(found)


def _value(found: list[Token]) -> Form:
    r"""An expression; one with ``\pm`` is two."""
    if len(found) > 2 and found[0].kind == "num" and found[1].text == "_":
        base = "".join(token.text for token in found[2:] if token.text not in ("{", "}", "(", ")"))
        return _based(found[0].text, base)
    if any(token.text in ("pm", "mp") for token in found):
        return Several((Value(parse(found, (1,))), Value(parse(found, (-1,)))))
    if len(found) > 2 and found[0].kind == "name" and found[0].text.isupper() and found[1].text == "(":
        inner = found[1:]
        if _matching(inner, 0) == len(inner) - 1 and len(_split(inner[1:-1], (",",))[0]) > 1:
            return _form(inner, 1)  # P(2, 3) is the point (2, 3)
    return Value(parse(found))


def _based(digits: str, base: str) -> Form:
    """Digits in a base that is written as a number or a word."""
    known = str(_BASES.get(base.lower(), base))
    if not known.isdigit() or not 2 <= int(known) <= 36:
        raise Unreadable(f"{base!r} is not a base")
    return Based(digits.lstrip("0").upper() or "0", known)


def _several(parts: list[list[Token]], used: list[str], level: int) -> Form:
    kept = [part for part in parts if part]  # "3, 5, and 7" has nothing between its comma and its "and"
    gaps = sum(not part for part in parts)
    if gaps > sum(text in ("and", "or") for text in used) or not kept or len(kept) > MAX_ITEMS:
        raise Unreadable("a list with nothing between two commas")
    forms = [_DOTS if [token.text for token in part] == ["ldots"] else _form(part, level + 1) for part in kept]
    words = {text for text in used if text in ("and", "or")}
    if len(words) > 1:
        raise Unreadable("both 'and' and 'or'")
    first = forms[0]
    if isinstance(first, Named) and not any(isinstance(form, Named) for form in forms[1:]) and len(first.names) == 1:
        forms[0] = first.form  # n = 2, 3, 4
        return Named(first.names, Several(tuple(_flat(forms)), joined=words.pop() if words else ","))
    return Several(tuple(_flat(forms)), joined=words.pop() if words else ",")


def _flat(forms: Sequence[Form]) -> list[Form]:
    r"""With the two values of each ``\pm`` as items of their own."""
    return [item for form in forms for item in (form.items if _is_pair(form) else (form,))]


def _is_pair(form: Form) -> bool:
    return isinstance(form, Several) and not form.braces


def _relation(parts: list[list[Token]], ops: list[str], level: int) -> Form:
    if any(not part for part in parts):
        raise Unreadable("a relation without one of its sides")
    names = _names(parts[0])
    if ops == ["="] and names:
        return Named(names, _form(parts[1], level + 1))
    if ops == ["="] and len(parts[1]) == 1 and _names(parts[1]) and not any(t.kind == "name" for t in parts[0]):
        return Named(_names(parts[1]), _form(parts[0], level + 1))  # 3 = x
    if names and len(ops) > 1 and ops[0] == "=" and len(names) == 1:
        return Named(names, _relation(parts[1:], ops[1:], level + 1))
    return Relation(tuple(ops), tuple(_form(part, level + 1) for part in parts))


def _names(found: list[Token]) -> tuple[str, ...]:
    """The names on the left of an equation: ``x``, ``x_1``, ``f(x)``, ``(x, y)``, ``AB``; () if it is no name."""
    texts = [token.text for token in found]
    if texts[:1] == ["("] and texts[-1:] == [")"] and "," in texts:
        parts, _ = _split(found[1:-1], (",",))
        names = [_names(part) for part in parts]
        return tuple(name[0] for name in names) if all(len(name) == 1 for name in names) else ()
    if not found or not all(token.kind in ("name", "text", "num", "op") or token.text in GREEK for token in found):
        return ()
    if found[0].kind == "text" and all(token.kind == "text" for token in found):
        return (" ".join(texts),) if units.read_unit(" ".join(texts)) is not None else ()
    name = re.fullmatch(
        r"((?:[A-Za-z]|[A-Za-z]{2,}|\\)+?)(_(?:\{\w+\}|\w))?'*(\^\{?-1\}?)?(\([A-Za-z0-9](?:,[A-Za-z])*\))?", "".join(texts)
    )
    if name is None or found[0].kind == "num" or (len(found) == 1 and found[0].text in ("e", "i")):
        return ()
    letters = [token for token in found if token.kind == "name"]
    if len(letters) > 1 and not name.group(3) and not name.group(4) and not all(t.text.isupper() for t in letters):
        return () if not name.group(2) else (name.group(0),)
    return (name.group(1) + (name.group(2) or ""),)


def _bracketed(found: list[Token], level: int) -> Form | None:
    left, right = found[0].text, found[-1].text
    inner = found[1:-1]
    if left == "\\{" and right == "\\}":
        if not inner:
            return Several((), braces=True)
        form = _form(inner, level + 1)
        return dataclasses.replace(form, braces=True) if _is_pair(form) else Several((form,), braces=True)
    if left not in ("(", "[", "langle"):
        return None
    parts, used = _split(inner, (",", ";"))
    if not used:
        return None
    if left == "langle":
        left, right = "(", ")"
    if any(token.text == "ldots" for token in inner) or any(not part for part in parts) or len(parts) > MAX_ITEMS:
        raise Unreadable("dots or gaps in a tuple")
    return Bracketed(left, right, tuple(_form(part, level + 1) for part in parts))


def _reversed_brackets(found: list[Token], level: int) -> Form | None:
    """``]a, b[``, the open interval of French texts, alone or in a union."""
    if found[0].text != "]" and not (found[-1].text == "[" and found[0].text in ("[", "]")):
        return None
    pieces: list[list[Token]] = [[]]
    for token in found:
        if token.text in ("cup", "cap"):
            pieces.append([])
        else:
            pieces[-1].append(token)
    forms: list[Form] = []
    for piece in pieces:
        if len(piece) < 5 or piece[0].text not in ("[", "]", "(") or piece[-1].text not in ("[", "]", ")"):
            raise Unreadable("brackets that do not match")
        parts, used = _split(piece[1:-1], (",", ";"))
        if len(used) != 1:
            raise Unreadable("an interval has two ends")
        left = {"]": "(", "[": "[", "(": "("}[piece[0].text]
        right = {"]": "]", "[": ")", ")": ")"}[piece[-1].text]
        forms.append(Bracketed(left, right, tuple(_form(part, level + 1) for part in parts)))
    return forms[0] if len(forms) == 1 else Union("cup", tuple(forms))


def _named_set(found: list[Token]) -> Form:
    if len(found) > 1:
        raise Unreadable(f"{found[1].text!r} after a set")
    return _EMPTY if found[0].text == "emptyset" else _REALS if found[0].text == "setR" else Words(found[0].text)


def _scaled_matrix(found: list[Token]) -> Form:
    start = next(index for index, token in enumerate(found) if token.text == "begin")
    before = found[:start]
    if before and before[-1].text in ("cdot", "times"):
        before = before[:-1]
    scale = number(-1) if [t.text for t in before] == ["-"] else parse(before)
    return _matrix(found[start:], scale)


def _matrix(found: list[Token], scale: Expr | None) -> Matrix:
    r"""``\begin{pmatrix} a & b \\ c & d \end{pmatrix}``, all entries multiplied by ``scale``."""
    end = next((index for index, token in enumerate(found) if token.text == "end"), -1)
    opening, start = _environment(found, 1)
    closing, stop = _environment(found, end + 1)
    if end < 0 or opening != closing or stop != len(found) or opening not in _MATRICES:
        raise Unreadable("an environment that is not a matrix")
    if opening == "array" and start < end and found[start].text == "{":
        start = _matching(found, start) + 1
    rows, _ = _split(found[start:end], ("newline",))
    if rows and not rows[-1]:
        rows.pop()
    trees = []
    for row in rows:
        entries = [parse(entry) for entry in _split(row, ("&",))[0]]
        trees.append(tuple(Expr("mul", (scale, entry)) if scale else entry for entry in entries))
    if not trees or len({len(row) for row in trees}) > 1 or len(trees) * len(trees[0]) > MAX_ITEMS:
        raise Unreadable("a matrix with rows of different length")
    return Matrix(tuple(trees), "vmatrix" if opening == "vmatrix" else "matrix")


def _environment(found: Sequence[Token], start: int) -> tuple[str, int]:
    """The name in braces at ``start``, and where it ends."""
    name = []
    at = start
    if at < len(found) and found[at].text == "{":
        at += 1
        while at < len(found) and found[at].text != "}":
            name.append(found[at].text)
            at += 1
    return "".join(name), at + 1


_DOTS = Words("...")
_MATRICES = ("pmatrix", "bmatrix", "matrix", "Bmatrix", "vmatrix", "smallmatrix", "array")
_INFINITY = Value(Expr("const", name="inf"))
_REALS = Bracketed("(", ")", (Value(Expr("neg", (_INFINITY.tree,))), _INFINITY))
_EMPTY = Several((), braces=True)
_SPECIAL: dict[str, Form] = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "all real", "any real number", "reals"), _REALS),
    **dict.fromkeys(
        ("empty set", "no solution", "no solutions", "there is no solution", "there are no solutions", "no real solutions",
         "no real solution"), _EMPTY
    ),
}  # fmt: skip
