"""Prefills in few shapes, shared by the samples of a prompt."""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from prm_jax.models.generation import bucket
from prm_jax.models.responses import pad_right
from prm_jax.rollouts.slot_programs import Cache

Text = tuple[int, ...]
Read = Callable[[np.ndarray, np.ndarray], Cache]
Place = tuple[Cache, int]
"""A prefill, and the index of a text in it."""


class PrefillPool:
    """Reads texts, and keeps what is likely to be needed again.

    The number of texts in a prefill depends on their length class only, so that neither the compiled shapes nor a
    response's last bits depend on other requests.

    Args:
      read: (tokens [P, S], lengths [P]) -> `Cache`.
      rows: maximum number of texts in a prefill; twice as many are kept.
      tokens: about the number of tokens in a prefill.
      columns: maximum length of a text.
    """

    def __init__(self, read: Read, *, rows: int, tokens: int, columns: int) -> None:
        self._read, self._rows, self._tokens, self._columns = read, rows, tokens, columns
        self._kept: collections.OrderedDict[Text, Place] = collections.OrderedDict()
        self._count = 0

    def find(self, texts: Sequence[Text], ahead: Sequence[Text]) -> list[Place]:
        """The places of texts; those that are missing are read.

        Args:
          texts: any number.
          ahead: texts that will be needed next; they take places that would be padding.
        """
        wanted = set(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        places = {text: self._kept[text] for text in wanted if text in self._kept}
        later = [text for text in dict.fromkeys(ahead) if text not in self._kept and text not in wanted]
        for size in sorted({self._size(text) for text in missing}):
            now = [text for text in missing if self._size(text) == size]
            spare = -len(now) % self._per_read(size)
            now += [text for text in later if self._size(text) == size][:spare]
            for start in range(0, len(now), self._per_read(size)):
                part = now[start : start + self._per_read(size)]
                places |= dict(zip(part, self.read(part), strict=True))
        coming = set(ahead)
        for text, place in places.items():
            self._kept[text] = place
            self._kept.move_to_end(text)
        for text in [text for text in self._kept if text not in coming]:
            del self._kept[text]
        while len(self._kept) > 2 * self._rows:
            self._kept.popitem(last=False)
        return [places[text] for text in texts]

    def read(self, texts: Sequence[Text]) -> list[Place]:
        """Reads texts of one length class, at most as many as a prefill holds."""
        size = self._size(texts[0])
        count = self._per_read(size)
        tokens, lengths = pad_right([*texts, *[texts[-1]] * (count - len(texts))], size)
        self._count += tokens.size
        found = self._read(tokens, lengths)
        return [(found, index) for index in range(len(texts))]

    def take_count(self) -> int:
        """Tokens read since the last call, padding included."""
        count, self._count = self._count, 0
        return count

    def _size(self, text: Text) -> int:
        return bucket(len(text), self._columns)

    def _per_read(self, size: int) -> int:
        return max(1, min(self._rows, self._tokens // size))
