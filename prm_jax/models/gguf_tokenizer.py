"""Tokenizers from GGUF metadata: byte-level BPE, whose word-splitting rule is only named, and SentencePiece BPE."""

from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError, require
from prm_jax.models import gguf_pieces
from prm_jax.models.fast_codec import FastCodec
from prm_jax.models.special_tokens import SpecialTokens, make_special_tokens

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> (pattern or None for GPT-2's, digits one by one, Unicode NFC, whole words before
# merges)
_PRE: dict[str, tuple[str | None, bool, bool, bool]] = {
    "gpt-2": (None, False, False, False),
    "smollm": (None, True, False, False),
    "llama-bpe": (_WORDS % "{1,3}", False, False, True),
    "llama3": (_WORDS % "{1,3}", False, False, True),
    "llama-v3": (_WORDS % "{1,3}", False, False, True),
    "qwen2": (_WORDS % "", False, True, False),
    "deepseek-r1-qwen": (_WORDS % "", False, True, False),
}
# llama.cpp prepends the beginning-of-text token for these unless the file says otherwise.
_ADDS_BOS = ("llama-bpe", "llama3", "llama-v3")
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
# Chat templates of models with SentencePiece vocabularies end a turn with these; files often name only the end of text.
_TURN_ENDS = ("<end_of_turn>", "<|end|>", "<|im_end|>")
# Files of Phi-3 do not say that most of its added tokens swallow blanks after them; llama.cpp goes by the model's name.
_SWALLOWING_MODELS, _NOT_SWALLOWING = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")


def load(metadata: Mapping[str, Any], *, source: str) -> tuple[FastCodec, SpecialTokens]:
    """Builds the tokenizer that a GGUF file describes.

    Args:
      metadata: the file's key-value pairs, of which ``tokenizer.ggml.*`` are read.
      source: the file's name, for errors.

    Returns:
      The codec, without the unused ids at the end of the vocabulary, and the special tokens.

    Raises:
      UserError: for a model other than byte-level and SentencePiece BPE, an unknown ``tokenizer.ggml.pre`` of the
        former, missing keys, or lists that do not fit together.
    """
    tokenizers = require("tokenizers", "gguf")
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{source}: tokenizer.ggml.model={kind!r} is not supported, expected 'gpt2' (byte-level BPE) or 'llama' "
            "(SentencePiece BPE); take the Hugging Face directory of this model instead, with its tokenizer.json"
        )
    tokens, types = _vocabulary(metadata, source)
    if kind == "llama":
        fast = gguf_pieces.make_tokenizer(tokenizers, metadata, tokens, source)
        special_types: tuple[int, ...] = (_CONTROL, _UNKNOWN)
        adds_bos, ends = True, tuple(i for i, token in enumerate(tokens) if token in _TURN_ENDS)
    else:
        fast = _byte_level(tokenizers, metadata, tokens, source)
        special_types = (_CONTROL,)
        adds_bos, ends = metadata["tokenizer.ggml.pre"] in _ADDS_BOS, ()
    name = str(metadata.get("general.name", "")).lower()
    swallows = kind == "llama" and any(part in name for part in _SWALLOWING_MODELS)
    fast.add_tokens(
        [
            tokenizers.AddedToken(
                token,
                special=of in special_types,
                normalized=False,
                rstrip=swallows and token not in _NOT_SWALLOWING,
            )
            for token, of in zip(tokens, types, strict=True)
            if of in (*special_types, _USER_DEFINED)
        ]
    )
    special = _special(metadata, len(tokens), ends, source)
    fast.post_processor = _post_processor(tokenizers, metadata, adds_bos, special, tokens)
    return FastCodec(fast), special


def _byte_level(tokenizers: Any, metadata: Mapping[str, Any], tokens: Sequence[str], source: str) -> Any:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE:
        raise UserError(f"{source}: tokenizer.ggml.pre={pre!r} is not known; known: {', '.join(_PRE)}")
    pattern, digits, nfc, ignore_merges = _PRE[pre]
    merges = _merges(metadata, source)
    try:
        model = tokenizers.models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{source}: its vocabulary and merges do not fit together: {error}") from error
    fast = tokenizers.Tokenizer(model)
    if nfc:
        fast.normalizer = tokenizers.normalizers.NFC()
    fast.pre_tokenizer = _pre_tokenizer(tokenizers, pattern, digits)
    fast.decoder = tokenizers.decoders.ByteLevel()
    return fast


def _special(metadata: Mapping[str, Any], size: int, turn_ends: tuple[int, ...], source: str) -> SpecialTokens:
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "padding_token_id", "eot_token_id", "eom_token_id"):
        value = ids[name] = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and not 0 <= value < size:
            raise UserError(f"{source}: tokenizer.ggml.{name}={value} is outside its {size} tokens")
    ends = tuple(i for i in (ids["eot_token_id"], ids["eom_token_id"]) if i is not None)
    return make_special_tokens(ids["bos_token_id"], ids["eos_token_id"], ids["padding_token_id"], (*ends, *turn_ends))


def _post_processor(
    tokenizers: Any, metadata: Mapping[str, Any], adds_bos: bool, special: SpecialTokens, tokens: Sequence[str]
) -> Any:
    """What ``add_special`` adds around a text; None for nothing."""
    parts, named = ["$A"], {}
    if special.bos_id is not None and metadata.get("tokenizer.ggml.add_bos_token", adds_bos):
        named[tokens[special.bos_id]] = special.bos_id
        parts.insert(0, tokens[special.bos_id])
    if special.eos_id is not None and metadata.get("tokenizer.ggml.add_eos_token", False):
        named[tokens[special.eos_id]] = special.eos_id
        parts.append(tokens[special.eos_id])
    if not named:
        return None
    return tokenizers.processors.TemplateProcessing(single=parts, special_tokens=list(named.items()))


def _vocabulary(metadata: Mapping[str, Any], source: str) -> tuple[Sequence[str], Sequence[int]]:
    """The tokens by id and their types, without unused ones at the end."""
    tokens = _texts(metadata, "tokens", source)
    types = list(metadata.get("tokenizer.ggml.token_type", [1] * len(tokens)))
    if len(types) != len(tokens):
        raise UserError(f"{source}: {len(types)} token types for {len(tokens)} tokens")
    end = len(tokens)
    while end and types[end - 1] == _UNUSED:  # rows that pad the embedding
        end -= 1
    if len(set(tokens[:end])) != end:
        raise UserError(f"{source}: tokenizer.ggml.tokens has a duplicate token")
    return tokens[:end], types[:end]


def _merges(metadata: Mapping[str, Any], source: str) -> list[tuple[str, str]]:
    merges = []
    for merge in _texts(metadata, "merges", source):
        # Spaces inside tokens are written as another letter, so the first space separates the two tokens.
        cut = merge.find(" ", 1)
        if cut < 0:
            raise UserError(f"{source}: tokenizer.ggml.merges has {merge!r}, expected two tokens")
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges


def _texts(metadata: Mapping[str, Any], name: str, source: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UserError(f"{source}: tokenizer.ggml.{name} is missing or not a list of text")
    return found


def _pre_tokenizer(tokenizers: Any, pattern: str | None, digits: bool) -> Any:
    pre = tokenizers.pre_tokenizers
    stages = [pre.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        stages.append(pre.Split(tokenizers.Regex(pattern), behavior="isolated"))
    stages.append(pre.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    return pre.Sequence(stages)
