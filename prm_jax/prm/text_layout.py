"""A problem and the steps of a solution as one text, and where in it each step ends."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.data.problems import Prompt
from prm_jax.errors import UserError
from prm_jax.prm.reward_model_options import TextLayout

_OTHER = "choose another layout (--layout, or --text.chat in train-prm)"

Reader = Callable[[Prompt, Sequence[str], Any], "Tokens"]
"""Tokens of a prompt and steps, with a tokenizer, in a layout of its own."""


@dataclasses.dataclass(frozen=True)
class LaidText:
    """A text with steps in it.

    Attributes:
      text: prompt and steps.
      start: character at which the steps begin.
      ends: one per step, increasing: the character after its separator.
      begin: whether the tokenizer adds what it puts before a text.
      prefix: token ids before the text (a prompt that is given as ids, a begin-of-text token).
      cuts: characters, increasing, at which the text is cut into pieces that are tokenised apart.
      forced: spans [start, end) of characters that the model did not write; tokens that start in one belong to no step.
    """

    text: str
    start: int
    ends: tuple[int, ...]
    begin: bool
    prefix: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    forced: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a laid-out text.

    Attributes:
      ids: [T] int32.
      step_ids: [T] int32: the step that the token starts in, -1 for the prompt, for what follows the last step, and for
        what the model did not write.
      reads: [S] int32: the token at which each step's score is read: the last one that starts inside the step, or,
        for a step that has none, the token that covers it.
    """

    ids: np.ndarray
    step_ids: np.ndarray
    reads: np.ndarray


def lay_out(
    prompt: Prompt, steps: Sequence[str], layout: TextLayout, tokenizer: Any,
    forced: Sequence[tuple[int, int]] = (),
) -> LaidText:  # fmt: skip
    """Writes prompt and steps as the layout says.

    Args:
      prompt: text, chat messages (always through the chat template), or token ids (kept as they are).
      steps: at least one; none for the prompt alone (not with chat turns).
      layout: see there.
      tokenizer: its chat template is used where a chat is wanted.
      forced: spans of the joined steps that the model did not write, in order; they are tokenised apart. With chat
        turns they are read like all else.

    Raises:
      UserError: no chat template, or one that rewrites earlier turns.
    """
    if layout.chat == "turns":
        return _turns(prompt, steps, layout, tokenizer)
    prefix: tuple[int, ...] = ()
    begin = layout.begin == "tokenizer"
    if isinstance(prompt, str) and layout.chat == "none":
        head = prompt + layout.join
        if layout.begin == "bos" and tokenizer.bos_id is not None:
            prefix = (tokenizer.bos_id,)
    elif isinstance(prompt, str) or (prompt and isinstance(prompt[0], Mapping)):
        head, begin = tokenizer.render_chat(_messages(prompt, layout)), False
    else:
        head, begin, prefix = "", False, tuple(int(token) for token in prompt)  # type: ignore[arg-type]
    text, ends, cuts = head, [], [len(head)]
    spans: list[tuple[int, int]] = []
    begun = 0  # characters of the joined steps before this one
    for index, whole in enumerate(steps):
        step = whole.strip() if layout.strip else whole
        separated = layout.last_separator or index + 1 < len(steps)
        # Steps that were cut out of a response may have their separator already.
        written = bool(layout.separator) and step.endswith(layout.separator)
        text += layout.between if index else ""
        spans += _shifted(forced, begun + whole.index(step), len(step), len(text))
        begun += len(whole)
        text += step[: -len(layout.separator)] if written else step
        cuts.append(len(text))
        text += layout.separator if separated or written else ""
        ends.append(len(text))
        cuts.append(len(text))
    apart = {"one": [], "prompt": [len(head)], "steps": cuts}[layout.pieces]
    apart = sorted({*apart, *(place for span in spans for place in span)})
    return LaidText(text, len(head), tuple(ends), begin, prefix, tuple(apart), tuple(spans))


def _shifted(
    spans: Sequence[tuple[int, int]], start: int, length: int, to: int
) -> list[tuple[int, int]]:
    """The parts of spans in a piece of a text, by their places where the piece begins at `to`."""
    inside = [(max(low - start, 0), min(high - start, length)) for low, high in spans]
    return [(to + low, to + high) for low, high in inside if low < high]


def prompt_tokens(prompt: Prompt, layout: TextLayout, tokenizer: Any) -> list[int]:
    """The tokens of a prompt alone, as they precede the steps where prompt and steps are tokenised apart."""
    laid = lay_out(prompt, (), layout, tokenizer)
    return [*laid.prefix, *_encode(laid, tokenizer)[0]]


def tokenize(laid: LaidText, tokenizer: Any, *, end: bool = False) -> Tokens:
    """Token ids of the whole text, its steps found by the characters that each token stands for.

    A token that extends over the end of a step belongs to the step that it starts in.

    Args:
      laid: from ``lay_out``.
      tokenizer: gives ids with spans.
      end: append the end-of-text token, as part of the last step.

    Raises:
      UserError: the text gives no token, or there is no end-of-text token.
    """
    ids, spans = _encode(laid, tokenizer)
    starts = np.asarray([start for start, _ in spans], np.int64)
    bare = np.asarray([start == stop for start, stop in spans], bool)  # added tokens stand for no characters
    ends = np.asarray(laid.ends, np.int64)
    step_ids = np.searchsorted(ends, starts, side="right").astype(np.int32)
    outside = (starts < laid.start) | (step_ids >= len(ends)) | bare
    for low, high in laid.forced:
        outside |= (starts >= low) & (starts < high)
    step_ids[outside] = -1
    if not len(ids):
        raise UserError(f"the text {laid.text[:40]!r} gives no token")
    # Special tokens before the text precede every step's end; those after it follow every step.
    first = int(np.argmin(bare))
    begun = np.where(bare, np.where(np.arange(len(starts)) < first, -1, len(laid.text)), starts)
    reads = np.asarray([np.flatnonzero(begun < stop)[-1] for stop in ends], np.int32)
    if laid.prefix:
        ids = [*laid.prefix, *ids]
        step_ids = np.concatenate([np.full(len(laid.prefix), -1, np.int32), step_ids])
        reads = reads + len(laid.prefix)
    if end:
        if tokenizer.eos_id is None:
            raise UserError("--text.end needs an end-of-text token, which this tokenizer does not name")
        keep = int(reads[-1]) + 1
        ids, step_ids = [*ids[:keep], tokenizer.eos_id], np.append(step_ids[:keep], np.int32(len(ends) - 1))
        reads[-1] = keep
    return Tokens(np.asarray(ids, np.int32), step_ids.astype(np.int32), reads.astype(np.int32))


def _encode(laid: LaidText, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and spans of the pieces of the text, each tokenised apart."""
    bounds = [0, *dict.fromkeys(laid.cuts), len(laid.text)]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for number, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        special = laid.begin and number == 0
        if high > low or special:
            found, places = tokenizer.encode_with_spans(laid.text[low:high], add_special=special)
            ids += found
            spans += [(low + start, low + stop) for start, stop in places]
    return ids, spans


def _messages(prompt: Prompt, layout: TextLayout) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]  # type: ignore[arg-type]
    if layout.system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": layout.system})
    return messages


def _turns(prompt: Prompt, steps: Sequence[str], layout: TextLayout, tokenizer: Any) -> LaidText:
    """Every step is a turn of its own, with the tag as the answer; each is read just before its tag."""
    if not isinstance(prompt, str):
        raise UserError(f"a layout in which steps are turns of a chat needs prompts that are plain text; {_OTHER}")
    messages = [{"role": "system", "content": layout.system}] if layout.system else []
    ends: list[int] = []
    texts: list[str] = []
    for index, step in enumerate(step.strip() if layout.strip else step for step in steps):
        content = step if index else prompt + layout.join + step
        messages.append({"role": "user", "content": content})
        texts.append(tokenizer.render_chat(messages))
        ends.append(len(texts[-1]))
        messages.append({"role": "assistant", "content": layout.tag})
    for shorter, longer in zip(texts, texts[1:], strict=False):
        if not longer.startswith(shorter + layout.tag):
            raise UserError(
                "this chat template changes earlier turns when a later one follows, so that the steps cannot be scored "
                f"in one pass; {_OTHER}"
            )
    # Templates may trim what they are given.
    start = texts[0].find(steps[0].strip(), texts[0].find(prompt.strip()) + len(prompt.strip()))
    if start < 0:
        raise UserError(f"this chat template does not show the steps as they are; {_OTHER}")
    return LaidText(texts[-1], start, tuple(ends), False)
