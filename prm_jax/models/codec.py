"""The part of a tokenizer that differs between kinds: text to ids, ids to bytes."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

Span = tuple[int, int]
UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()


class Codec(abc.ABC):
    """Maps text to token ids and token ids to bytes.

    Attributes:
      tokens: token by id, spelled as in the file (byte-level vocabularies map bytes to letters); None for
        unused ids.
      token_bytes: the bytes that each id adds to a text.
      special_ids: ids of special tokens, which decoding can leave out.
    """

    def __init__(self, tokens: Sequence[str | None], token_bytes: Sequence[bytes], special_ids: Iterable[int]):
        self.tokens = tuple(tokens)
        self.token_bytes = tuple(token_bytes)
        self.special_ids = frozenset(special_ids)

    @abc.abstractmethod
    def encode_with_spans(self, text: str, add_special: bool) -> tuple[list[int], list[Span]]:
        """See ``Tokenizer.encode_with_spans``."""

    @abc.abstractmethod
    def to_json(self) -> str:
        """See ``Tokenizer.to_json``."""

    def encode(self, text: str, add_special: bool) -> list[int]:
        """The ids alone; codecs override this where spans cost extra."""
        return self.encode_with_spans(text, add_special)[0]

    def config_json(self) -> dict[str, Any]:
        """Entries that the codec needs in ``tokenizer_config.json``."""
        return {}

    def finish_text(self, text: str) -> str:
        """Final step of decoding a whole text; returns a suffix of it."""
        return text
