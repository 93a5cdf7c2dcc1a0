"""Tokenizers: text to token ids and back, spans, chats, identity."""

import codecs
import datetime
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError
from prm_jax.models import chat, tokenizer_files
from prm_jax.models.char_codec import SPECIAL, CharCodec
from prm_jax.models.codec import UNKNOWN, Codec, Span
from prm_jax.models.config import ModelConfig
from prm_jax.models.hub import find_model
from prm_jax.models.special_tokens import SpecialTokens


class Tokenizer:
    """Text to token ids and back.

    ``Tokenizer.load`` reads the tokenizer of a checkpoint; ``CharTokenizer`` makes one from an alphabet.

    Args:
      codec: maps text to ids and ids to bytes.
      special: the ids with a meaning of their own.
      chat_template: Jinja source, or None.

    Attributes:
      codec: as given.
      special: as given.
      chat_template: as given.
      tokens: token by id, spelled as in the file (byte-level vocabularies map bytes to letters); None for
        unused ids.
      special_ids: the ids that ``skip_special`` leaves out.

    Raises:
      UserError: for a special id outside the vocabulary.
    """

    def __init__(self, codec: Codec, *, special: SpecialTokens, chat_template: str | None = None):
        self.codec = codec
        self.special = special
        self.chat_template = chat_template
        self.tokens = codec.tokens
        self.special_ids = codec.special_ids
        for index in (special.bos_id, special.pad_id, *special.eos_ids):
            if index is not None and not 0 <= index < len(self.tokens):
                raise UserError(f"special token id {index} is outside the tokenizer's {len(self.tokens)} tokens")

    @staticmethod
    def load(path: str | pathlib.Path) -> "Tokenizer":
        """Loads the tokenizer of a checkpoint.

        Args:
          path: a Hugging Face directory (an adapter's is its base model's, unless it has its own), a
            ``tokenizer.json`` (its neighbours are read too), a ``.gguf`` file, or a name on the hub (see
            ``find_model``).

        Returns:
          The tokenizer, with the checkpoint's chat template and special ids.  A warning is logged if it
          has no end-of-text token.

        Raises:
          UserError: if there is none, or one that would tokenize differently here.
        """
        codec, special, template = tokenizer_files.load(find_model(path))
        if isinstance(codec, CharCodec):
            return CharTokenizer(codec.alphabet, chat_template=template)
        return Tokenizer(codec, special=special, chat_template=template)

    def encode_with_spans(self, text: str, *, add_special: bool = False) -> tuple[list[int], list[Span]]:
        """Token ids and, for each, the span ``text[start:end]`` that it covers.

        Spans of neighbours overlap if a character is split between them; an added special token has an empty
        span.
        """
        return self.codec.encode_with_spans(text, add_special)

    def to_json(self) -> str:
        """The contents of a ``tokenizer.json`` that other libraries read as the same tokenizer."""
        return self.codec.to_json()

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
          text: any text; special tokens spelled out in it become special tokens.
          add_special: add the tokens that the checkpoint puts around a text, usually a beginning-of-text token.
            Text from ``render_chat`` already contains them.

        Returns:
          Ids in ``[0, vocab_size)``.
        """
        return self.codec.encode(text, add_special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; invalid UTF-8 and ids outside the vocabulary give U+FFFD.

        ``decode(encode(text)) == text`` for every text that the vocabulary covers.
        """
        kept = (i for i in map(int, ids) if not (skip_special and i in self.special_ids))
        return self.finish_text(b"".join(map(self.token_bytes, kept)).decode(errors="replace"))

    def decode_with_spans(self, ids: Iterable[int], *, skip_special: bool = False) -> tuple[str, list[Span]]:
        """``decode(ids)`` and, for every id, the span of characters that it contributes to.

        Args:
          ids: T token ids.
          skip_special: leave special tokens out of the text; their spans are empty.

        Returns:
          The text, and T spans ``(start, end)``, non-decreasing in both ends; neighbours that share a character
          overlap.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces: list[str] = []
        spans: list[Span] = []
        length = 0
        for token in map(int, ids):
            start = length
            if not (skip_special and token in self.special_ids):
                piece = decoder.decode(self.token_bytes(token))
                pieces.append(piece)
                length += len(piece)
            # Bytes still waiting for the rest of their character belong to the character after `length`.
            spans.append((start, length + bool(decoder.getstate()[0])))
        pieces.append(decoder.decode(b"", final=True))
        text = "".join(pieces)
        cut = len(text) - len(self.finish_text(text))
        spans = [(max(0, start - cut), max(0, min(end, len(text)) - cut)) for start, end in spans]
        return text[cut:], spans

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to a text; those of U+FFFD for an id outside the vocabulary."""
        return self.codec.token_bytes[token] if 0 <= token < len(self.tokens) else UNKNOWN

    def render_chat(
        self,
        messages: Sequence[chat.Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> str:
        """Renders a conversation with the checkpoint's template; see ``prm_jax.models.chat.render_chat``."""
        if self.chat_template is None:
            raise UserError(
                "this tokenizer has no chat template: give prompts as plain text, or add a chat_template to "
                "its tokenizer_config.json"
            )
        special = self.special
        named = {"bos_token": special.bos_id, "eos_token": special.eos_id, "pad_token": special.pad_id}
        spelled = {name: self.tokens[i] or "" for name, i in named.items() if i is not None}
        return chat.render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=spelled,
            variables=variables,
            now=now,
        )

    def chat(
        self,
        messages: Sequence[chat.Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> list[int]:
        """``encode(render_chat(messages))``: token ids of a conversation."""
        return self.encode(
            self.render_chat(messages, add_generation_prompt=add_generation_prompt, variables=variables, now=now)
        )

    @property
    def vocab_size(self) -> int:
        """The largest id plus one; an embedding may have more rows, never fewer."""
        return len(self.tokens)

    @property
    def bos_id(self) -> int | None:
        """See ``SpecialTokens``."""
        return self.special.bos_id

    @property
    def eos_id(self) -> int | None:
        """See ``SpecialTokens``."""
        return self.special.eos_id

    @property
    def pad_id(self) -> int:
        """See ``SpecialTokens``."""
        return self.special.pad_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """See ``SpecialTokens``."""
        return self.special.eos_ids

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary; equal if two models can score each other's tokens."""
        return hashlib.sha256(json.dumps(self.tokens, separators=(",", ":")).encode()).hexdigest()

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes ``tokenizer.json``, ``tokenizer_config.json``, ``generation_config.json``, for ``load``."""
        parts = tokenizer_files.Parts(self.codec, self.special, self.chat_template)
        tokenizer_files.save(parts, pathlib.Path(directory))

    def finish_text(self, text: str) -> str:
        """Final step of decoding a whole text; returns a suffix of it."""
        return self.codec.finish_text(text)


class CharTokenizer(Tokenizer):
    """One token per character, for the built-in tasks and the tiny models that learn them.

    Ids 0, 1, 2 are ``<pad>``, ``<bos>``, ``<eos>``; the characters of the alphabet follow in order.

    Args:
      alphabet: the characters, each once.
      chat_template: Jinja source, for tasks with conversations.

    Raises:
      UserError: for an empty alphabet or a repeated character.
    """

    def __init__(self, alphabet: str, *, chat_template: str | None = None):
        super().__init__(CharCodec(alphabet), special=SPECIAL, chat_template=chat_template)
        self.alphabet = alphabet


def check_same_vocabulary(
    a: Tokenizer, b: Tokenizer, *, names: tuple[str, str] = ("the policy", "the reward model")
) -> None:
    """Checks that two models share a vocabulary, as they must to score each other's tokens.

    Raises:
      UserError: naming the first id that differs.
    """
    if a.fingerprint == b.fingerprint:
        return
    first, second = names
    for token, (of_a, of_b) in enumerate(zip(a.tokens, b.tokens, strict=False)):
        if of_a != of_b:
            raise UserError(
                f"the tokenizers differ: id {token} is {of_a!r} for {first} and {of_b!r} for {second}; "
                "both models must share one vocabulary"
            )
    longer, shorter = (a, b) if a.vocab_size > b.vocab_size else (b, a)
    who = first if longer is a else second
    raise UserError(
        f"the tokenizers differ: id {shorter.vocab_size} ({longer.tokens[shorter.vocab_size]!r}) exists for "
        f"{who} only; both models must share one vocabulary"
    )


def check_fits(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Checks that the model has an embedding for every id of the tokenizer.

    Raises:
      UserError: if not; an id outside the embedding would silently read another row.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer does not match the model: it has ids up to {tokenizer.vocab_size - 1} "
            f"({tokenizer.tokens[-1]!r}), the embedding has {config.vocab_size} rows; "
            "use the tokenizer of the same checkpoint"
        )
