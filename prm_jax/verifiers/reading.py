r"""Reading an answer: LaTeX becomes a form with a unit, which ``prm_jax.verifiers.comparison`` compares."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TypeGuard

from prm_jax.verifiers import units
from prm_jax.verifiers.expressions import GREEK, parse
from prm_jax.verifiers.forms import (
    EMPTY,
    MAX_ITEMS,
    REALS,
    Answer,
    Bracketed,
    Colon,
    Form,
    Named,
    Relation,
    Several,
    Union,
    Value,
    Words,
)
from prm_jax.verifiers.latex import Token, Unreadable, plain
from prm_jax.verifiers.lexer import tokens
from prm_jax.verifiers.limits import unbalanced
from prm_jax.verifiers.matrices import matrix, scaled_matrix
from prm_jax.verifiers.token_lists import matching, outer_braces, split, without_unit
from prm_jax.verifiers.words import based, special_form

MAX_LEVELS = 6
"""Lists in tuples in sets, and so on."""

_RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "in": "in", "ne": "!=", "equiv": "equiv"}
_NAME = re.compile(r"((?:[A-Za-z]|[A-Za-z]{2,}|\\)+?)(_(?:\{\w+\}|\w))?'*(\^\{?-1\}?)?(\([A-Za-z0-9](?:,[A-Za-z])*\))?")
_DOTS = Words("...")


@functools.lru_cache(maxsize=8192)
def read(latex: str, *, strict: bool = False) -> Answer:
    """The form and unit of an answer.

    Args:
      latex: within the limits of ``prm_jax.verifiers.limits``.
      strict: do not read ``70 000`` as one number.

    Raises:
      Unreadable: for anything else than one answer.
    """
    if unbalanced(latex):
        raise Unreadable("braces that do not match")
    words = plain(latex)
    if special := special_form(words):
        return Answer(special, (), ("words", words.lower()))
    found = tokens(latex, spaced_thousands=not strict, known_words=units.KNOWN)
    stripped, unit = without_unit(found)
    return Answer(_form(outer_braces(stripped), 0), unit, tuple(token.text for token in found))


def _form(found: list[Token], level: int) -> Form:
    found = outer_braces(found)
    if not found:
        raise Unreadable("nothing where a value was expected")
    if level > MAX_LEVELS:
        raise Unreadable("nested too deep")
    if found[0].text == "begin":
        return matrix(found, None)
    if french := _reversed_brackets(found, level):
        return french
    parts, used = split(found, (",", ";", "and", "or"))
    if used:
        return _several(parts, used, level)
    parts, used = split(found, tuple(_RELATIONS))
    if used:
        return _relation(parts, [_RELATIONS[text] for text in used], level)
    parts, used = split(found, ("cup", "cap", "setminus"))
    if used:
        if len(set(used)) > 1:
            raise Unreadable("different set operations")
        return Union(used[0], tuple(_form(part, level + 1) for part in parts))
    parts, used = split(found, (":",))
    if used:
        return Colon(tuple(parse(part) for part in parts))
    if found[0].text in ("(", "[") and len(found) > 3 and found[1].text == "begin" and found[-2].text == "}":
        return matrix(found[1:-1], None)
    if matching(found, 0) == len(found) - 1 and (bracketed := _bracketed(found, level)):
        return bracketed
    if any(token.text == "begin" for token in found):
        return scaled_matrix(found)
    if found[0].text in ("emptyset", "setR", "setZ", "setQ", "setN", "setC"):
        return _named_set(found)
    return _value(found)


def _value(found: list[Token]) -> Form:
    r"""An expression; one with ``\pm`` is two."""
    if len(found) > 2 and found[0].kind == "num" and found[1].text == "_":
        base = "".join(token.text for token in found[2:] if token.text not in ("{", "}", "(", ")"))
        return based(found[0].text, base)
    if any(token.text in ("pm", "mp") for token in found):
        return Several((Value(parse(found, (1,))), Value(parse(found, (-1,)))))
    if len(found) > 2 and found[0].kind == "name" and found[0].text.isupper() and found[1].text == "(":
        inner = found[1:]
        if matching(inner, 0) == len(inner) - 1 and len(split(inner[1:-1], (",",))[0]) > 1:
            return _form(inner, 1)  # P(2, 3) is the point (2, 3)
    return Value(parse(found))


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


def _is_pair(form: Form) -> TypeGuard[Several]:
    """Whether a form is several values without braces."""
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
        parts, _ = split(found[1:-1], (",",))
        names = [_names(part) for part in parts]
        return tuple(name[0] for name in names) if all(len(name) == 1 for name in names) else ()
    if not found or not all(token.kind in ("name", "text", "num", "op") or token.text in GREEK for token in found):
        return ()
    if found[0].kind == "text" and all(token.kind == "text" for token in found):
        return (" ".join(texts),) if units.read_unit(" ".join(texts)) is not None else ()
    name = _NAME.fullmatch("".join(texts))
    if name is None or found[0].kind == "num" or (len(found) == 1 and found[0].text in ("e", "i")):
        return ()
    letters = [token for token in found if token.kind == "name"]
    if len(letters) > 1 and not name.group(3) and not name.group(4) and not all(t.text.isupper() for t in letters):
        return () if not name.group(2) else (name.group(0),)
    return (name.group(1) + (name.group(2) or "") + "'" * name.group(0).count("'"),)


def _bracketed(found: list[Token], level: int) -> Form | None:
    left, right = found[0].text, found[-1].text
    inner = found[1:-1]
    if left == "\\{" and right == "\\}":
        if not inner:
            return Several((), braces=True)
        for separator in ("|", ":"):
            parts, used = split(inner, (separator,))
            if len(used) == 1 and (_names(parts[0]) or "in" in [token.text for token in parts[0]]):
                return _form(parts[1], level + 1)  # {x | x < 3}
        form = _form(inner, level + 1)
        return dataclasses.replace(form, braces=True) if _is_pair(form) else Several((form,), braces=True)
    if left not in ("(", "[", "langle"):
        return None
    parts, used = split(inner, (",", ";"))
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
        parts, used = split(piece[1:-1], (",", ";"))
        if len(used) != 1:
            raise Unreadable("an interval has two ends")
        left = {"]": "(", "[": "[", "(": "("}[piece[0].text]
        right = {"]": "]", "[": ")", ")": ")"}[piece[-1].text]
        forms.append(Bracketed(left, right, tuple(_form(part, level + 1) for part in parts)))
    return forms[0] if len(forms) == 1 else Union("cup", tuple(forms))


def _named_set(found: list[Token]) -> Form:
    if len(found) > 1:
        raise Unreadable(f"{found[1].text!r} after a set")
    return EMPTY if found[0].text == "emptyset" else REALS if found[0].text == "setR" else Words(found[0].text)
