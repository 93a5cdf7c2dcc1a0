"""Parts of a response that its model did not write: from tokens to characters and back."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError


def text_spans(tokens: np.ndarray, sampled: np.ndarray, tokenizer: Any) -> list[tuple[int, int]]:
    """Spans of characters [start, end) of a response that the model did not draw.

    Args:
      tokens: [n] int.
      sampled: [n] bool.
      tokenizer: with ``token_bytes`` and ``special_ids``, which have no characters.
    """
    spans: list[tuple[int, int]] = []
    specials = set(tokenizer.special_ids)
    data = b""
    for token, drawn in zip(tokens.tolist(), sampled.tolist(), strict=True):
        start = len(data.decode("utf-8", "ignore"))
        data += b"" if token in specials else tokenizer.token_bytes(token)
        end = len(data.decode("utf-8", "ignore"))
        if drawn or end == start:
            continue
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def cut_at_spans(text: str, spans: Iterable[Sequence[int]]) -> Iterator[tuple[str, bool]]:
    """Pieces of a text in order, and whether the model wrote each.

    Raises:
      UserError: spans that are not pairs, overlap, or lie outside the text.
    """
    position = 0
    for span in sorted(map(tuple, spans)):
        if len(span) != 2 or not all(isinstance(place, int) for place in span) or not (
            position <= span[0] <= span[1] <= len(text)
        ):  # fmt: skip
            raise UserError(
                f"the forced span {list(span)} of a response of {len(text)} characters is not a pair of places in it "
                "that comes after the span before"
            )
        if position < span[0]:
            yield text[position : span[0]], True
        if span[0] < span[1]:
            yield text[span[0] : span[1]], False
        position = span[1]
    if position < len(text):
        yield text[position:], True
