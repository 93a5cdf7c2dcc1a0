"""Streaming text of a response: whole characters only, ending at the first stop string."""

import codecs
from collections.abc import Sequence

from prm_jax.errors import UserError
from prm_jax.models.tokenizer import Tokenizer


class TextStream:
    """Converts token ids to text that no later token can change.

    The bytes of an incomplete character, and a suffix that may become a stop string, are held back.  The returned
    pieces add up to ``tokenizer.decode`` of all ids, or to the text before the first stop string.

    Args:
      tokenizer: decodes.
      stop: strings that end the text and are not part of it.
      skip_special: leave special tokens out of the text.

    Attributes:
      stopped: whether a stop string was completed; later tokens give no text.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), skip_special: bool = True):
        if isinstance(stop, str) or not all(stop):
            raise UserError(f"stop must be a list of non-empty strings, found {stop!r}")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._begun = False

    def push(self, token: int) -> str:
        """Adds a token and returns the text that has become final."""
        if self._skip_special and token in self._tokenizer.special_ids:
            return ""
        return self._advance(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """Ends the stream and returns the text that was held back."""
        text = self._advance(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if not self._begun:
            self._begun = True
            text = self._tokenizer.finish_text(text)
        text = self._held + text
        # The stop string that is completed first counts.
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
