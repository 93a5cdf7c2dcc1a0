"""What every tokenizer offers: text to token ids and back, spans, chats, identity."""

import abc
import codecs
import dataclasses
import datetime
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prm_jax.errors import UserError
from prm_jax.models import chat

if TYPE_CHECKING:
    from prm_jax.models.config import ModelConfig

Span = tuple[int, int]
_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids with a meaning of their own.

    Attributes:
      bos_id: what a text starts with under ``add_special``, if anything.
      eos_id: ends a text; None where the checkpoint names none.
      pad_id: fills rows; where the checkpoint names none, ``eos_id`` or else 0 (a mask tells padding apart).
      eos_ids: every id that ends a generation, ``eos_id`` first: a chat model has one for the turn as well.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int = 0
    eos_ids: tuple[int, ...] = ()


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    ``Tokenizer.load`` gives the right kind: byte-pair tokenizers of checkpoints (``FastTokenizer``) or the
    character tokenizers of built-in tasks (``CharTokenizer``).

    Attributes:
      tokens: id to token as the file spells it (bytes mapped to letters, for byte-level vocabularies); None
        where an id is not in use.
      special: the ids with a meaning.
      special_ids: the ids that ``skip_special`` leaves out.
      chat_template: Jinja source, or None.
    """

    def __init__(
        self,
        tokens: Sequence[str | None],
        token_bytes: Sequence[bytes],
        *,
        special: SpecialTokens,
        special_ids: Iterable[int],
        chat_template: str | None,
    ):
        self.tokens = tuple(tokens)
        self.special = special
        self.special_ids = frozenset(special_ids)
        self.chat_template = chat_template
        self._bytes = tuple(token_bytes)

    @staticmethod
    def load(path: str | pathlib.Path) -> "Tokenizer":
        """Loads the tokenizer of a checkpoint.

        Args:
          path: a Hugging Face directory, a ``tokenizer.json`` (files beside it count), or a ``.gguf`` file.

        Returns:
          The tokenizer, with the chat template and the special ids found beside it.

        Raises:
          UserError: where there is none, or of a kind that would tokenize differently here.
        """
        from prm_jax.models import tokenizer_files

        return tokenizer_files.load(pathlib.Path(path))

    @abc.abstractmethod
    def encode_with_spans(self, text: str, *, add_special: bool = False) -> tuple[list[int], list[Span]]:
        """Token ids and, for each, the characters ``text[start:end]`` that it stands for.

        Spans of neighbours overlap where a character is cut in two; an added special token has an empty span.
        """

    @abc.abstractmethod
    def to_json(self) -> str:
        """The contents of a ``tokenizer.json`` that other libraries read as the same tokenizer."""

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
          text: any text; special tokens spelled out in it become special tokens.
          add_special: add what the checkpoint puts around a text (a beginning-of-text token, mostly).  Text
            from ``render_chat`` has it already.

        Returns:
          Ids in ``[0, vocab_size)``.
        """
        return self.encode_with_spans(text, add_special=add_special)[0]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8, and ids not in the vocabulary, give U+FFFD.

        ``decode(encode(text)) == text`` for every text that the vocabulary covers.
        """
        kept = (i for i in map(int, ids) if not (skip_special and i in self.special_ids))
        return self.finish_text(b"".join(map(self.token_bytes, kept)).decode(errors="replace"))

    def decode_with_spans(self, ids: Iterable[int], *, skip_special: bool = False) -> tuple[str, list[Span]]:
        """``decode(ids)`` and, for every id, the characters of the text that it takes part in.

        Args:
          ids: T token ids.
          skip_special: leave special tokens out of the text; their spans are empty.

        Returns:
          The text, and T spans ``(start, end)`` that rise in both ends; neighbours that share a character
          overlap in it.
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
        """The bytes that one token adds to a text; those of U+FFFD for an id not in the vocabulary."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else _UNKNOWN

    def render_chat(
        self,
        messages: Sequence[chat.Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> str:
        """A conversation as text, by the checkpoint's template: ``prm_jax.models.chat.render_chat``."""
        if self.chat_template is None:
            raise UserError(
                "this tokenizer has no chat template: give prompts as plain text, or put a chat_template into "
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
        """One more than the largest id; an embedding may have more rows, never fewer."""
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
        """SHA-256 of which id is which token: equal for two models that can score each other's tokens."""
        return hashlib.sha256(json.dumps(self.tokens, separators=(",", ":")).encode()).hexdigest()

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes ``tokenizer.json``, ``tokenizer_config.json``, ``generation_config.json``, for ``load``."""
        from prm_jax.models import tokenizer_files

        tokenizer_files.save(self, pathlib.Path(directory))

    def config_json(self) -> dict[str, Any]:
        """Further entries for ``tokenizer_config.json``."""
        return {}

    def finish_text(self, text: str) -> str:
        """What a decoder does to the text as a whole: a suffix of it."""
        return text


def check_same_vocabulary(
    a: Tokenizer, b: Tokenizer, *, names: tuple[str, str] = ("the policy", "the reward model")
) -> None:
    """Checks that every id means the same to both, as models that score each other's tokens need.

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


def check_fits(tokenizer: Tokenizer, config: "ModelConfig") -> None:
    """Checks that the model has an embedding for every id of the tokenizer.

    Raises:
      UserError: otherwise; an id beyond the embedding would silently read another row.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer does not match the model: it has ids up to {tokenizer.vocab_size - 1} "
            f"({tokenizer.tokens[-1]!r}), the embedding has {config.vocab_size} rows; "
            "take the tokenizer that belongs to the checkpoint"
        )
