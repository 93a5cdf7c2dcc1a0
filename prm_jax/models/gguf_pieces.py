"""SentencePiece vocabularies of GGUF files: BPE whose merges are not listed but follow from the pieces' scores."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError

_SPACE = "\u2581"  # how pieces spell a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def make_tokenizer(tokenizers: Any, metadata: Mapping[str, Any], tokens: Sequence[str], source: str) -> Any:
    """Builds the tokenizer of a vocabulary with scores, without its special and user-defined tokens.

    A text's spaces are spelled as U+2581, one more is put before it unless ``tokenizer.ggml.add_space_prefix`` is
    false, and then its characters are merged, best score first. Characters that are no piece become the tokens of
    their UTF-8 bytes. This is llama.cpp's tokenizer for ``tokenizer.ggml.model=llama``, except that of two overlapping
    merges with the same score the left one does not always come first.

    Args:
      tokenizers: the package.
      metadata: the file's key-value pairs.
      tokens: the pieces by id.
      source: the file's name, for errors.

    Returns:
      A ``tokenizers.Tokenizer``.

    Raises:
      UserError: for scores that are missing, not finite, or not one per token; for an unknown token outside the
        vocabulary; for a vocabulary with neither an unknown token nor all 256 bytes.
    """
    merges = recover_merges(tokens, _scores(metadata, len(tokens), source))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    if unknown is not None and not 0 <= unknown < len(tokens):
        raise UserError(f"{source}: tokenizer.ggml.unknown_token_id={unknown} is outside its {len(tokens)} tokens")
    num_bytes = sum(_BYTE.fullmatch(token) is not None for token in tokens)
    if unknown is None and num_bytes < 256:
        raise UserError(
            f"{source}: no tokenizer.ggml.unknown_token_id, and {num_bytes} of the 256 byte tokens <0x00> to <0xFF>: "
            "text outside the vocabulary could not be tokenized; take the Hugging Face directory of this model instead"
        )
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    spell = normalizers.Replace(" ", _SPACE)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spell]) if prefix else spell
    stages = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)] if prefix else stages)
    return fast


def recover_merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs of pieces whose concatenation is a piece, best first.

    Args:
      tokens: the pieces by id; those spelled ``<0x00>`` to ``<0xFF>`` stand for bytes and take no part.
      scores: one for each.

    Returns:
      The pairs by the score of their concatenation, from the highest on; among equals by the concatenation's id, and
      then the pair with the longer left piece first.
    """
    pieces = {token: index for index, token in enumerate(tokens) if not _BYTE.fullmatch(token)}
    merges = []
    for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece])):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((left, right))
    return merges


def _scores(metadata: Mapping[str, Any], size: int, source: str) -> Sequence[float]:
    """One per token; those of unused tokens at the end of the file's list are left out."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list):
        raise UserError(
            f"{source}: tokenizer.ggml.scores is missing or not a list of numbers: merges cannot be told without it; "
            "convert the model again, or take its Hugging Face directory instead"
        )
    count = len(metadata["tokenizer.ggml.tokens"])
    if len(scores) != count:
        raise UserError(f"{source}: tokenizer.ggml.scores has {len(scores)} entries for {count} tokens")
    if not all(math.isfinite(score) for score in scores):
        raise UserError(f"{source}: tokenizer.ggml.scores has an entry that is not a finite number")
    return scores[:size]
