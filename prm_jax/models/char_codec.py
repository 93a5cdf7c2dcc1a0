"""Character vocabularies for the built-in tasks and the tiny models that learn them; no dependencies."""

import json
import re
from typing import Any

from prm_jax.errors import UserError
from prm_jax.models.codec import Codec, Span
from prm_jax.models.special_tokens import SpecialTokens

_SPECIAL = ("<pad>", "<bos>", "<eos>")
SPECIAL = SpecialTokens(bos_id=1, eos_id=2, pad_id=0, eos_ids=(2,))


class CharCodec(Codec):
    """One token per character: ids 0, 1, 2 are ``<pad>``, ``<bos>``, ``<eos>``, followed by the alphabet in order.

    Args:
      alphabet: the characters, each once.

    Raises:
      UserError: for an empty alphabet, a repeated character, or half of a surrogate pair.
    """

    def __init__(self, alphabet: str):
        if not alphabet:
            raise UserError("the alphabet of a character tokenizer is empty")
        repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
        if repeated:
            raise UserError(f"the alphabet of a character tokenizer contains {repeated[0]!r} more than once")
        if any("\ud800" <= c <= "\udfff" for c in alphabet):
            raise UserError("the alphabet of a character tokenizer contains half of a surrogate pair")
        tokens = (*_SPECIAL, *alphabet)
        super().__init__(tokens, [token.encode() for token in tokens], special_ids=(0, 1, 2))
        self.alphabet = alphabet
        self._ids = {token: index for index, token in enumerate(tokens)}

    def encode_with_spans(self, text: str, add_special: bool) -> tuple[list[int], list[Span]]:
        """See ``Codec``.

        Raises:
          UserError: for a character that is not in the alphabet.
        """
        ids: list[int] = [1] if add_special else []
        spans: list[Span] = [(0, 0)] if add_special else []
        for match in re.finditer(r"<pad>|<bos>|<eos>|[\s\S]", text):
            token = self._ids.get(match.group())
            if token is None:
                raise UserError(
                    f"the character {match.group()!r} at position {match.start()} is not in the alphabet "
                    f"{self.alphabet!r} of this model's tokenizer"
                )
            ids.append(token)
            spans.append(match.span())
        return ids, spans

    def to_json(self) -> str:
        """See ``Codec``: a word-level model over isolated characters."""
        added = [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(_SPECIAL)
        ]
        bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
        text = [{"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB")]
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": r"[\s\S]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [bos, text[0]],
                    "pair": [bos, *text],
                    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
                },
                "decoder": {"type": "Fuse"},
                "model": {"type": "WordLevel", "vocab": self._ids, "unk_token": "<unk>"},
            },
            ensure_ascii=False,
        )

    def config_json(self) -> dict[str, Any]:
        """See ``Codec``: the alphabet, which tells ``Tokenizer.load`` to use this codec."""
        return {"char_alphabet": self.alphabet}
