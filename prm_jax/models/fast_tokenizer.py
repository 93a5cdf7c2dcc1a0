"""Tokenizers described by a ``tokenizer.json``, run by the ``tokenizers`` package."""

import json
from collections.abc import Mapping
from typing import Any

from prm_jax.errors import UserError
from prm_jax.models.tokenizer import _UNKNOWN, Span, SpecialTokens, Tokenizer


class FastTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` package, with truncation and padding switched off.

    Args:
      fast: a ``tokenizers.Tokenizer``; taken over.
      special: the ids with a meaning; ``special_tokens`` finds them by name.
      chat_template: Jinja source, or None.
      config: entries to keep in ``tokenizer_config.json``.

    Raises:
      UserError: for a decoder that is neither byte-level nor SentencePiece-like, or a special id out of
        range.
    """

    def __init__(
        self,
        fast: Any,
        *,
        special: SpecialTokens,
        chat_template: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        fast.no_truncation()
        fast.no_padding()
        vocabulary = fast.get_vocab(with_added_tokens=True)
        tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = token
        for index in (special.bos_id, special.pad_id, *special.eos_ids):
            if index is not None and not 0 <= index < len(tokens):
                raise UserError(f"special token id {index} is beyond the tokenizer's {len(tokens)} tokens")
        added = fast.get_added_tokens_decoder()
        decoder = json.loads(fast.to_str())["decoder"] if fast.decoder is not None else None
        token_bytes, self._strips_space = _token_bytes(tokens, decoder)
        for index, token in added.items():
            token_bytes[index] = token.content.encode()
        super().__init__(
            tokens,
            token_bytes,
            special=special,
            special_ids=[index for index, token in added.items() if token.special],
            chat_template=chat_template,
        )
        self._fast = fast
        self._config = dict(config or {})

    def encode_with_spans(self, text: str, *, add_special: bool = False) -> tuple[list[int], list[Span]]:
        """See ``Tokenizer``.

        Raises:
          UserError: for text that no file can hold (half a surrogate pair), or that the vocabulary lacks.
        """
        encoding = self._encode(text, add_special)
        return list(encoding.ids), list(encoding.offsets)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """See ``Tokenizer``; without the cost of spans."""
        return list(self._encode(text, add_special).ids)

    def to_json(self) -> str:
        """See ``Tokenizer``."""
        return self._fast.to_str()

    def config_json(self) -> dict[str, Any]:
        """See ``Tokenizer``: what the file that this was loaded from said."""
        return dict(self._config)

    def _encode(self, text: str, add_special: bool) -> Any:
        try:
            return self._fast.encode(text, add_special_tokens=add_special)
        except Exception as error:  # the package raises bare Exception
            raise UserError(f"cannot tokenize {text[:80]!r}: {error}") from error

    def finish_text(self, text: str) -> str:
        return text[1:] if self._strips_space and text.startswith(" ") else text


def special_tokens(fast: Any, config: Mapping[str, Any], eos_ids: tuple[int, ...] = ()) -> SpecialTokens:
    """The ids of the tokens that a ``tokenizer_config.json`` names.

    Args:
      fast: a ``tokenizers.Tokenizer``.
      config: the parsed file.
      eos_ids: further ids that end a generation, from ``generation_config.json``.

    Raises:
      UserError: for a name that is no token.
    """
    found: dict[str, int | None] = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        found[name] = None if token is None else fast.token_to_id(str(token))
        if token is not None and found[name] is None:
            raise UserError(f"tokenizer_config.json: {name}={token!r} is not a token of tokenizer.json")
    return make_special_tokens(found["bos_token"], found["eos_token"], found["pad_token"], eos_ids)


def make_special_tokens(
    bos_id: int | None, eos_id: int | None, pad_id: int | None, eos_ids: tuple[int, ...]
) -> SpecialTokens:
    """Fills in what a checkpoint leaves out: see ``SpecialTokens``."""
    ends = tuple(dict.fromkeys(i for i in (eos_id, *eos_ids) if i is not None))
    eos_id = ends[0] if ends else None
    if pad_id is None:
        pad_id = eos_id if eos_id is not None else 0
    return SpecialTokens(bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, eos_ids=ends)


def _token_bytes(tokens: list[str | None], decoder: Mapping[str, Any] | None) -> tuple[list[bytes], bool]:
    """Each token's bytes under the decoder, and whether it drops the text's first space."""
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
        f"tokenizer.json: decoder {' + '.join(kinds) or 'null'} is not supported; expected ByteLevel, or the "
        "SentencePiece kind (Replace or Metaspace, ByteFallback, Fuse, Strip)"
    )


def _stages(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [stage for inner in decoder["decoders"] for stage in _stages(inner)]
    return [decoder]


def _space(stage: Mapping[str, Any]) -> str | None:
    """The letter that stands for a space, if this stage turns one back."""
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
        return _UNKNOWN
    try:
        return bytes([letters[letter] for letter in token])
    except KeyError:  # not spelled in letters for bytes
        return token.encode()


def _from_pieces(token: str | None, space: str | None, fallback: bool) -> bytes:
    if token is None:
        return _UNKNOWN
    if fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return (token.replace(space, " ") if space else token).encode()
