"""Tokenizers described by a ``tokenizer.json``, run by the ``tokenizers`` package."""

import json
from collections.abc import Mapping
from typing import Any

from prm_jax.errors import UserError
from prm_jax.models.codec import UNKNOWN, Codec, Span


class FastCodec(Codec):
    """A tokenizer of the ``tokenizers`` package with truncation and padding disabled.

    Args:
      fast: a ``tokenizers.Tokenizer``; it is modified.
      config: entries to keep in ``tokenizer_config.json``.

    Raises:
      UserError: for a decoder that is neither byte-level nor of the SentencePiece kind.
    """

    def __init__(self, fast: Any, config: Mapping[str, Any] | None = None):
        fast.no_truncation()
        fast.no_padding()
        vocabulary = fast.get_vocab(with_added_tokens=True)
        tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = token
        added = fast.get_added_tokens_decoder()
        decoder = json.loads(fast.to_str())["decoder"] if fast.decoder is not None else None
        token_bytes, self._strips_space = _token_bytes(tokens, decoder)
        for index, token in added.items():
            token_bytes[index] = token.content.encode()
        super().__init__(tokens, token_bytes, [index for index, token in added.items() if token.special])
        self._fast = fast
        self._config = dict(config or {})

    def encode_with_spans(self, text: str, add_special: bool) -> tuple[list[int], list[Span]]:
        """See ``Codec``.

        Raises:
          UserError: for text with half of a surrogate pair, or text that the vocabulary does not cover.
        """
        encoding = self._encode(text, add_special)
        return list(encoding.ids), list(encoding.offsets)

    def encode(self, text: str, add_special: bool) -> list[int]:
        """See ``Codec``."""
        return list(self._encode(text, add_special).ids)

    def to_json(self) -> str:
        """See ``Codec``."""
        return self._fast.to_str()

    def config_json(self) -> dict[str, Any]:
        """See ``Codec``: the entries of the file that this was loaded from."""
        return dict(self._config)

    def finish_text(self, text: str) -> str:
        """See ``Codec``."""
        return text[1:] if self._strips_space and text.startswith(" ") else text

    def _encode(self, text: str, add_special: bool) -> Any:
        try:
            return self._fast.encode(text, add_special_tokens=add_special)
        except BaseException as error:  # the package raises bare Exception, and BaseException when it panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"cannot tokenize {text[:80]!r}: {str(error)[:300]}") from error


def _token_bytes(tokens: list[str | None], decoder: Mapping[str, Any] | None) -> tuple[list[bytes], bool]:
    """Each token's bytes under the decoder, and whether it removes the text's first space."""
    stages = list(_stages(decoder))
    kinds = [stage["type"] for stage in stages]
    if kinds == ["ByteLevel"]:
        letters = _byte_letters()
        return [_from_letters(token, letters) for token in tokens], False
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        space = next((_space(stage) for stage in stages if _space(stage)), None)
        fallback = "ByteFallback" in kinds
        strips = any(kind in ("Strip", "Metaspace") for kind in kinds)
        return [_from_pieces(token, space, fallback) for token in tokens], strips
    raise UserError(
        f"tokenizer.json: decoder {' + '.join(kinds) or 'null'} is not supported; expected ByteLevel or the "
        "SentencePiece kind (Replace or Metaspace, ByteFallback, Fuse, Strip)"
    )


def _stages(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [stage for inner in decoder["decoders"] for stage in _stages(inner)]
    return [decoder]


def _space(stage: Mapping[str, Any]) -> str | None:
    """The character that this stage decodes to a space, if any."""
    if stage["type"] == "Metaspace":
        return stage["replacement"]
    if stage["type"] == "Replace" and stage["content"] == " ":
        return stage["pattern"].get("String")
    return None


def _byte_letters() -> dict[str, int]:
    """The printable letter that byte-level vocabularies write for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


def _from_letters(token: str | None, letters: Mapping[str, int]) -> bytes:
    if token is None:
        return UNKNOWN
    try:
        return bytes([letters[letter] for letter in token])
    except KeyError:  # not spelled in letters for bytes
        return token.encode()


def _from_pieces(token: str | None, space: str | None, fallback: bool) -> bytes:
    if token is None:
        return UNKNOWN
    if fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return (token.replace(space, " ") if space else token).encode()
