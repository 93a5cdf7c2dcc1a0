"""Finding the answer in a response.  Everything here is linear in the length of the text and runs none of it."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from prm_jax.errors import UserError

Where: TypeAlias = Literal["whole", "marker", "boxed", "last_number"] | Callable[[str], str | None]
"""Where a response's answer stands; a function gives the answer itself, None for none."""

ANSWER_MARKERS = ("####", "answer is", "answer:")
"""What opens an answer in plain text; case does not count."""

_BOX_OR_BRACE = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))", re.ASCII
)


def find_answer(response: str, where: Where, *, markers: Sequence[str] = ANSWER_MARKERS) -> str | None:
    r"""The answer of a response, stripped of white space around it.

    Args:
      response: any text.
      where: ``"whole"``: the response is the answer; ``"marker"``: the rest of the line after the last
        marker; ``"boxed"``: the last complete ``\boxed{...}``; ``"last_number"``: the last number in the
        text, whatever it counts, which is the laxest way and invites guessing; or a function.
      markers: for ``"marker"``.

    Returns:
      The answer, or None where there is none (an empty answer is none).
    """
    match where:
        case "whole":
            answer: str | None = response
        case "marker":
            answer = after_marker(response, markers)
        case "boxed":
            answer = last_boxed(response)
        case "last_number":
            answer = last_number(response)
        case _ if callable(where):
            answer = where(response)
        case _:
            raise UserError(
                f"unknown place of an answer: {where!r}; say 'whole', 'marker', 'boxed' or 'last_number', "
                "or give a function"
            )
    return (answer or "").strip() or None


def after_marker(text: str, markers: Sequence[str] = ANSWER_MARKERS) -> str | None:
    """The rest of the line after the last marker, without a colon before it or a full stop behind it.

    A marker counts in upper and lower case.  None without a marker.
    """
    *_, last = (None, *re.finditer("|".join(map(re.escape, markers)), text, re.IGNORECASE))
    if last is None:
        return None
    line = text[last.end() :].lstrip(" \t:*").split("\n", 1)[0]
    return line.rstrip(". \t\r*")


def last_boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` (or ``\fbox{...}``) holds, braces balanced; None if there is none.

    A box that is not closed is no box.  A box that holds nothing but a box is opened.
    """
    answer: str | None = None
    opened: list[tuple[bool, int]] = []
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if match.group(1) or token == "{":
            opened.append((bool(match.group(1)), match.end()))
        elif token == "}" and opened:
            is_box, start = opened.pop()
            answer = text[start : match.start()] if is_box else answer
    for _ in range(8):
        inner = re.fullmatch(r"\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*", answer or "", re.DOTALL)
        if inner is None or not _balanced(inner.group(1)):
            break
        answer = inner.group(1)
    return answer


def last_number(text: str) -> str | None:
    """The last number in a text, as it is written; a digit inside a word is none."""
    found = None
    for match in _NUMBER.finditer(text):
        if match.group():
            found = match.group()
    return found


def _balanced(text: str) -> bool:
    """Whether no brace of the text closes one before it."""
    depth = 0
    for match in _BOX_OR_BRACE.finditer(text):
        opens = match.group() == "{" or bool(match.group(1))
        depth += opens - (match.group() == "}")
        if depth < 0:
            return False
    return True
