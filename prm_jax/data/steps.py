"""Splitting a response into steps, and mapping the steps to its tokens.

A step is a span of characters; the spans of a response are contiguous and cover it. On tokens, steps are
``step_ids``: an int32 for each token, -1 outside the response.  The reward functions of ``prm_jax.rl`` read
step scores at a step's last token, so a token across a boundary counts to the step it starts in: by
then the model has read the whole of that step.
"""

import codecs
import dataclasses
import itertools
import operator
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from prm_jax.data.program_steps import statement_starts
from prm_jax.errors import UserError
from prm_jax.resolve import nearest

Span: TypeAlias = tuple[int, int]
"""Character offsets [start, end) of one step."""

How = Literal["newline", "blank", "step_marker", "sentence", "statement", "tag", "regex", "function", "whole"]

_NEWLINE = re.compile(r"\r\n|\n|\r")
_BLANK_LINE = re.compile(r"(?:\r\n|\n|\r)[^\S\r\n]*(?:\r\n|\n|\r)\s*")
# "Step 3" opening a line, with or without markup before it ("## Step 3", "**Step 3**"), or "Step 3:"
# anywhere, for solutions that are one line.
_STEP_MARKER = re.compile(r"(?:^|(?<=[\r\n]))[^\S\r\n]*(?:[#*>_-]+[^\S\r\n]*)?(?i:step)\s?\d+\b|\bStep\s?\d+\s?:")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?:\s+|$)|[\u3002\uff01\uff1f]\s*")
# A full stop after these does not end a sentence: an abbreviation, or the number of an item that opens a line.
_NO_SENTENCE_END = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|mr|mrs|ms|dr|fig|eq)|(?:^|[\r\n])[^\S\r\n]*\d{1,2})$",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class StepSplitter:
    r"""Cuts a response into steps: ``splitter(text) -> [(start, end), ...]``.

    The spans are in order, contiguous and cover the text. No step is white space alone or a separator alone: such a
    piece belongs to the previous step, or to the first step. The empty text has no steps.

    Attributes:
      how: where a step ends.

        * ``"newline"``: after each line; ``"blank"``: after each blank line;
        * ``"step_marker"``: before each ``Step 3:``;
        * ``"sentence"``: after each sentence (not after ``3.14``, ``e.g.`` or a list number);
        * ``"statement"``: before each statement of a Python program (see ``program_steps.statement_starts``);
        * ``"tag"``: after each occurrence of one of ``tags``, a model's own separators for example;
        * ``"regex"``: after each match of ``pattern``;
        * ``"function"``: where ``function(text)`` says: it returns the offsets at which steps start, or the steps
          themselves as strings that joined give the text;
        * ``"whole"``: nowhere; the response is one step (apart from ``answer_markers``).
      tags: literal strings, for ``"tag"``.
      pattern: a regular expression, for ``"regex"``.
      function: for ``"function"``.
      answer_markers: strings that start the answer; each occurrence starts a step, whatever ``how`` is.

    Raises:
      UserError: an option that ``how`` needs is missing, or one that it does not take is given.
    """

    how: How = "newline"
    tags: tuple[str, ...] = ()
    pattern: str | None = None
    function: Callable[[str], Iterable[int] | Iterable[str]] | None = None
    answer_markers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        hows = typing.get_args(How)
        if self.how not in hows:
            hint = nearest(self.how, hows)
            raise UserError(f"unknown splitter {self.how!r}; {hint}the splitters are {', '.join(hows)}")
        for how, field in {"tag": "tags", "regex": "pattern", "function": "function"}.items():
            given = getattr(self, field)
            if (how == self.how) != bool(given):
                need = "needs" if how == self.how else "does not take"
                raise UserError(f"the splitter {self.how!r} {need} the option {field!r}, which is {given!r}")
        if "" in self.tags or "" in self.answer_markers:
            raise UserError("a tag or answer marker between steps is the empty string; leave it out")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise UserError(f"the pattern {self.pattern!r} is not a regular expression: {error}") from error

    @property
    def boundaries(self) -> tuple[str, ...] | None:
        """The fixed strings after which a step ends; None when steps do not end at fixed strings."""
        fixed = {"newline": ("\n",), "blank": ("\n\n",), "tag": self.tags}
        return fixed.get(self.how)

    def __call__(self, text: str) -> list[Span]:
        """The spans of the steps of ``text``, in order, contiguous, covering it; [] for the empty text."""
        ends, starts = self._cuts(text)
        for marker in self.answer_markers:
            starts.extend(match.start() for match in re.finditer(re.escape(marker), text))
        cuts = sorted({cut for cut in (*starts, *(end for _, end in ends)) if 0 < cut < len(text)})
        pieces = list(zip([0, *cuts], [*cuts, len(text)], strict=True)) if text else []
        content = _without(text, ends)
        return _join_blank(pieces, [not content[start:end].strip() for start, end in pieces])

    def _cuts(self, text: str) -> tuple[list[Span], list[int]]:
        """(separator spans, each ending a step; offsets that start a step)."""
        match self.how:
            case "newline":
                return [m.span() for m in _NEWLINE.finditer(text)], []
            case "blank":
                return [m.span() for m in _BLANK_LINE.finditer(text)], []
            case "step_marker":
                return [], [m.start() for m in _STEP_MARKER.finditer(text)]
            case "sentence":
                ends = [m.span() for m in _SENTENCE_END.finditer(text)]
                return [(b, b) for a, b in ends if not _NO_SENTENCE_END.search(text[max(0, a - 12) : a])], []
            case "statement":
                return [], statement_starts(text)
            case "tag":
                either = "|".join(re.escape(s) for s in sorted(self.tags, key=len, reverse=True))
                return [m.span() for m in re.finditer(either, text)], []
            case "regex":
                assert self.pattern is not None
                return [m.span() for m in re.finditer(self.pattern, text) if m.end() > m.start()], []
            case "function":
                assert self.function is not None
                return [], self._checked_offsets(text)
            case _:
                return [], []

    def _checked_offsets(self, text: str) -> list[int]:
        assert self.function is not None
        found = list(self.function(text))
        if found and all(isinstance(piece, str) for piece in found):
            return _offsets_of(typing.cast(list[str], found), text)
        offsets = [_index(item) for item in found]
        bad = [item for item, offset in zip(found, offsets, strict=True) if not 0 <= offset <= len(text)]
        if bad:
            raise UserError(
                f"the splitting function returned {bad[0]!r}; it must return the offsets in [0, {len(text)}] at which "
                "steps start, or the steps as strings that joined give the text"
            )
        return offsets


def join_steps(steps: Sequence[str], separator: str = "\n\n") -> tuple[str, list[Span]]:
    """Joins separate steps (as in ProcessBench) into one text and its spans.

    Args:
      steps: the text of each step.
      separator: written after each step but the last; it belongs to the step before it.

    Returns:
      (text, spans): ``spans[k]`` is step k with the separator that follows it.
    """
    spans: list[Span] = []
    start = 0
    for index, step in enumerate(steps):
        end = start + len(step) + (len(separator) if index + 1 < len(steps) else 0)
        spans.append((start, end))
        start = end
    return separator.join(steps), spans


def step_ids_from_offsets(spans: Sequence[Span], starts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which step each token starts in.

    Args:
      spans: contiguous spans of the steps, as a ``StepSplitter`` gives them.
      starts: [T] the character offset at which each token starts, non-decreasing; a token that adds no text
        of its own (an end-of-text token, the later bytes of a character) has the offset at which the next
        text starts.

    Returns:
      [T] int32 in [0, S).  Tokens after the last span belong to the last step, so an end-of-text token
      does.  With no spans (an empty response, which is at most an end-of-text token) everything is step 0.
      A step wholly inside one token gets no token of its own; the other steps keep their numbers, which index the
      labels of the steps.
    """
    starts = np.asarray(starts, np.int64)
    if not len(spans):
        return np.zeros(starts.shape, np.int32)
    begins = np.asarray([start for start, _ in spans], np.int64)
    return np.clip(np.searchsorted(begins, starts, side="right") - 1, 0, len(spans) - 1).astype(np.int32)


def token_starts(pieces: Sequence[bytes]) -> tuple[str, list[int]]:
    """Decodes the bytes of tokens, keeping the character offset at which each token starts.

    Args:
      pieces: the bytes of each token, b"" for a special token; a character may be spread over several tokens.

    Returns:
      (text, starts): the UTF-8 text, with U+FFFD for what is not UTF-8, and [T] offsets.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts: list[int] = []
    text: list[str] = []
    length = 0
    for piece in pieces:
        starts.append(length)
        new = decoder.decode(piece)
        text.append(new)
        length += len(new)
    text.append(decoder.decode(b"", final=True))
    return "".join(text), starts


def step_ids_from_text(
    tokens: np.ndarray,
    mask: np.ndarray,
    token_bytes: Callable[[int], bytes],
    splitter: StepSplitter,
    *,
    special_ids: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Splits the text of each response and gives every token the number of its step.

    Exact for any tokenizer whose tokens represent bytes, whatever the separators: several tokens long, inside a token,
    or across two.

    Args:
      tokens: [B, T] int, rows ``[prompt][response][padding]``.
      mask: [B, T] bool, True on response tokens.
      token_bytes: the bytes of a token id.
      splitter: cuts the text of a response into steps.
      special_ids: ids without text (end of text, padding).

    Returns:
      (step_ids [B, T] int32, -1 where mask is False; num_steps [B] int32, the number of steps of each text,
      0 for an empty response; the texts).
    """
    tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
    step_ids = np.full(tokens.shape, -1, np.int32)
    num_steps = np.zeros(tokens.shape[0], np.int32)
    texts: list[str] = []
    specials = frozenset(int(token) for token in special_ids)
    for row in range(tokens.shape[0]):
        ids = [int(token) for token in tokens[row, mask[row]]]
        text, starts = token_starts([b"" if token in specials else token_bytes(token) for token in ids])
        spans = splitter(text)
        step_ids[row, mask[row]] = step_ids_from_offsets(spans, starts)
        num_steps[row] = len(spans)
        texts.append(text)
    return step_ids, num_steps, texts


def step_ids_from_separators(
    tokens: np.ndarray,
    mask: np.ndarray,
    separators: Sequence[int | Sequence[int]],
    *,
    answer_ids: Sequence[int] = (),
    blank_ids: Sequence[int] = (),
) -> np.ndarray:
    """Step numbers from the separators' token ids alone, for a whole batch at once.

    A step ends with its separators (a run of them counts once) and the next begins at the first token that is
    neither a separator nor blank; an answer token always begins a step.  This equals splitting
    the text with ``StepSplitter("tag", tags=..., answer_markers=...)`` where each separator,
    answer marker and blank is exactly the tokens named.

    Args:
      tokens: [B, T] int.
      mask: [B, T] bool, True on response tokens; a separator counts only if all of it is in the response.
      separators: each one a token id, or the ids of its several tokens.
      answer_ids: ids that open the answer.
      blank_ids: ids that make no step of their own (white space, end of text).

    Returns:
      [B, T] int32, -1 where mask is False; the first step is 0.
    """
    tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
    is_separator = np.zeros(tokens.shape, bool)
    is_last = np.zeros(tokens.shape, bool)
    for separator in separators:
        _mark(tokens, mask, np.atleast_1d(np.asarray(separator)), is_separator, is_last)
    is_answer = np.isin(tokens, np.asarray(answer_ids, tokens.dtype)) & mask
    content = mask & ~is_separator & ~np.isin(tokens, np.asarray(blank_ids, tokens.dtype))
    # The latest content and the latest separator end strictly before each token, as positions (-1: none yet).
    position = np.arange(tokens.shape[1])
    last_content = _latest_before(np.where(content, position, -1))
    last_separator = _latest_before(np.where(is_last, position, -1))
    starts = content & (last_content >= 0) & ((last_separator > last_content) | is_answer)
    return np.where(mask, np.cumsum(starts, axis=1), -1).astype(np.int32)


def _offsets_of(pieces: Sequence[str], text: str) -> list[int]:
    if "".join(pieces) != text:
        raise UserError(
            f"the splitting function returned steps that joined give {''.join(pieces)[:60]!r} and not the text, "
            f"{text[:60]!r}; keep the separators in the steps"
        )
    return [0, *itertools.accumulate(len(piece) for piece in pieces)]


def _index(item: Any) -> int:
    """An offset as an int; -1 for what is not one."""
    return operator.index(item) if hasattr(item, "__index__") and not isinstance(item, bool) else -1


def _without(text: str, spans: Sequence[Span]) -> str:
    """The text with these spans overwritten by spaces; offsets stay."""
    kept: list[str] = []
    done = 0
    for start, end in spans:
        kept += [text[done:start], " " * (end - start)]
        done = end
    return "".join([*kept, text[done:]])


def _join_blank(pieces: Sequence[Span], blank: Sequence[bool]) -> list[Span]:
    """Joins blank pieces to the step before them; leading ones to the first step."""
    spans: list[Span] = []
    lead: int | None = None
    for (start, end), is_blank in zip(pieces, blank, strict=True):
        if spans and is_blank:
            spans[-1] = (spans[-1][0], end)
        elif is_blank:
            lead = start if lead is None else lead
        else:
            spans.append((start if lead is None else lead, end))
            lead = None
    if lead is not None:
        spans.append((lead, pieces[-1][1]))
    return spans


def _mark(tokens: np.ndarray, mask: np.ndarray, ids: np.ndarray, is_separator: np.ndarray, is_last: np.ndarray) -> None:
    """Marks in place the tokens of each occurrence of a separator, and its last token."""
    width = tokens.shape[1] - len(ids) + 1
    if width <= 0:
        return
    found = np.ones((tokens.shape[0], width), bool)
    for k, token in enumerate(ids):
        found &= (tokens[:, k : k + width] == token) & mask[:, k : k + width]
    for k in range(len(ids)):
        is_separator[:, k : k + width] |= found
    is_last[:, len(ids) - 1 :] |= found


def _latest_before(marks: np.ndarray) -> np.ndarray:
    """[B, T]: the largest mark strictly before each position, -1 if none."""
    running = np.maximum.accumulate(marks, axis=1)
    return np.concatenate([np.full_like(running[:, :1], -1), running[:, :-1]], axis=1)
