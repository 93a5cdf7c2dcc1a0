r"""Finding the answer in a response.

One ladder serves every verifier: ``\boxed{...}``, then ``<answer>...</answer>``, then a sign such as ``####``, then a
phrase such as "the answer is", then, only where asked for, the last number. The first rung that the response has
decides. Everything is linear in the length of the text, of which only the last 200,000 characters are read.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

from prm_jax.errors import UserError
from prm_jax.verifiers.limits import MAX_RESPONSE
from prm_jax.verifiers.verdict import check_choice

Where: TypeAlias = (
    Literal["whole", "marker", "boxed", "tags", "ladder", "anywhere", "last_number"] | Callable[[str], str | None]
)
"""Where a response's answer is; a function returns the answer itself, or None."""

When: TypeAlias = Literal["refuse", "last"]
"""What to do with several different candidates on one rung."""

ANSWER_MARKERS = ("####", "answer is", "answer:", "answer =")
"""What introduces an answer in plain text, in any case; those without letters are a rung above the others."""

_PLACES = ("whole", "boxed", "tags", "marker", "ladder", "anywhere", "last_number")

MAX_CANDIDATES = 8
"""More different candidates on one rung are no answer."""

_BOX_OR_BRACE = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_TAG = re.compile(r"<(/?)(?:final_)?answer>", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))", re.ASCII
)
_SPECIAL_TOKENS = re.compile(r"(?:\s|</s>|<\|[\w-]{1,40}\|>|<(?:eos|pad|end_of_turn|im_end)>)+\Z", re.ASCII)
_LEAD = re.compile(
    r"(?:\s|[:*_`]|(?:therefore|thus|hence|then|simply|just|indeed|exactly|equal to|given by|clearly)\b,?)+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?]\**\s+(?=[A-Z*(\\])")
_TAKES_BACK = re.compile(
    r"[0-9]|\b(?:wait|actually|no|not|or|but|instead|however|correction|should|unless|oops|sorry)\b", re.IGNORECASE
)


def check_place(where: object, several: object) -> None:
    """Refuses an unknown place of answers, or an unknown way to treat several.

    Raises:
      UserError: names what was found and what is known.
    """
    if not callable(where) and where not in _PLACES:
        raise UserError(
            f"unknown place of an answer: {where!r}; expected 'whole', 'boxed', 'tags', 'marker', 'ladder', 'anywhere' "
            "(the ladder, then the last number), 'last_number', or a function"
        )
    check_choice("several", several, ("refuse", "last"))


def find_candidates(
    response: str, where: Where, *, markers: Sequence[str] = ANSWER_MARKERS, several: When = "refuse"
) -> tuple[str, ...]:
    r"""The different answers that a response gives at the place to look in, in order; () for no answer.

    Args:
      response: any text. Text up to the last ``</think>`` is not searched, except by ``"whole"`` and functions.
      where: ``"whole"``: the response is the answer; ``"boxed"``: complete ``\boxed{...}`` or ``\fbox{...}``;
        ``"tags"``: ``<answer>...</answer>``; ``"marker"``: the rest of the line after a marker, or the next line;
        ``"ladder"``: the first of boxed, tags and marker that there is; ``"anywhere"``: the same, then the last number;
        ``"last_number"``: the last number in the text, which invites guessing; or a function.
      markers: what introduces an answer, for marker and ladder.
      several: ``"refuse"`` returns all candidates, which must then all be right; ``"last"`` returns the last one.

    Returns:
      Candidates without white space around them; () also for more than ``MAX_CANDIDATES``.

    Raises:
      UserError: for an unknown place.
    """
    check_place(where, several)
    if callable(where):
        found = [where(response) or ""]
    elif where == "whole":
        found = [response]
    else:
        text = response[-MAX_RESPONSE:].rpartition("</think>")[2]
        found = _by_rungs(text, where, markers)
    candidates = list(dict.fromkeys(stripped for text in found if (stripped := _SPECIAL_TOKENS.sub("", text).strip())))
    if several == "last":
        return tuple(candidates[-1:]) if found and not found[-1].strip() == "" else ()
    return tuple(candidates) if len(candidates) <= MAX_CANDIDATES else ()


def find_answer(response: str, where: Where, *, markers: Sequence[str] = ANSWER_MARKERS) -> str | None:
    """The answer of a response where it is unambiguous; None where there is none, or several different ones.

    Args:
      response: any text.
      where, markers: as for ``find_candidates``.
    """
    candidates = find_candidates(response, where, markers=markers)
    return candidates[0] if len(candidates) == 1 else None


def last_boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` (or ``\fbox{...}``) contains, braces balanced; None without one.

    Boxes inside a box do not count, and a box that contains nothing but a box is opened.
    """
    found = boxes(text)
    return found[-1] if found else None


def after_marker(text: str, markers: Sequence[str] = ANSWER_MARKERS) -> str | None:
    """What follows the last marker of the first kind that occurs, signs before phrases; None without a marker."""
    found = _marked(text, markers)
    return found[-1] if found else None


def last_number(text: str) -> str | None:
    """The last number in a text, as written; digits inside a word are not one."""
    found = None
    for match in _NUMBER.finditer(text):
        if match.group():
            found = match.group()
    return found


class _Box(NamedTuple):
    r"""A complete box.

    Attributes:
      command: where ``\boxed`` starts.
      start, end: the content.
      inner: the boxes directly inside.
    """

    command: int
    start: int
    end: int
    inner: "list[_Box]"


def boxes(text: str) -> list[str]:
    """The contents of all complete boxes that are not inside another, in order."""
    complete: list[_Box] = []
    opened: list[tuple[bool, int, int]] = []
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if match.group(1) or token == "{":
            opened.append((bool(match.group(1)), match.start(), match.end()))
        elif token == "}" and opened:
            is_box, command, start = opened.pop()
            if is_box:
                inner: list[_Box] = []
                while complete and complete[-1].command > command:
                    inner.append(complete.pop())
                complete.append(_Box(command, start, match.start(), inner))
    return [_content(text, box) for box in complete]


def _content(text: str, box: _Box) -> str:
    """What a box contains, boxes that contain nothing but a box opened."""
    while len(box.inner) == 1:
        (inner,) = box.inner
        if text[box.start : inner.command].strip() or text[inner.end + 1 : box.end].strip():
            break
        box = inner
    return text[box.start : box.end]


def _by_rungs(text: str, where: str, markers: Sequence[str]) -> list[str]:
    match where:
        case "boxed":
            return boxes(text)
        case "tags":
            return list(_tagged(text))
        case "marker":
            return _marked(text, markers)
        case "last_number":
            return [last_number(text) or ""]
        case "ladder" | "anywhere":
            found = boxes(text) or list(_tagged(text)) or _marked(text, markers)
            return found or ([last_number(text) or ""] if where == "anywhere" else [])
        case _:
            raise AssertionError(where)


def _tagged(text: str) -> Iterator[str]:
    """What is between each closing tag and the last opening tag before it."""
    start = None
    for match in _TAG.finditer(text):
        if match.group(1):
            if start is not None:
                yield text[start : match.start()]
            start = None
        else:
            start = match.end()


def _marked(text: str, markers: Sequence[str]) -> list[str]:
    """What follows each marker: of signs if there are any, else of phrases."""
    signs = [marker for marker in markers if not any(character.isalpha() for character in marker)]
    for chosen in (signs, [marker for marker in markers if marker not in signs]):
        if not chosen:
            continue
        found = list(re.finditer("|".join(map(re.escape, chosen)), text, re.IGNORECASE))
        if found:
            ends = [match.start() for match in found[1:]] + [len(text)]
            return [_after(text, match.end(), end) for match, end in zip(found, ends, strict=True)]
    return []


def _after(text: str, start: int, end: int) -> str:
    """The rest of the line from ``start``, or the next line if that is empty: one sentence, without emphasis."""
    lead = _LEAD.match(text, start, end)
    start = lead.end() if lead else start
    line_end = text.find("\n", start, end)
    line = text[start : line_end if line_end >= 0 else end]
    sentence = _SENTENCE_END.search(line)
    if sentence and not _TAKES_BACK.search(line, sentence.end()):
        line = line[: sentence.start()]
    line = _SPECIAL_TOKENS.sub("", line).rstrip(" \t\r*_`")
    return line if line.endswith("..") else line.removesuffix(".").rstrip(" \t*_`")
