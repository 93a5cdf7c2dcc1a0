"""Byte-pair tokenizers from GGUF metadata, which names the word-splitting rule without spelling it out."""

from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError, require
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
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


def load(metadata: Mapping[str, Any], *, source: str) -> tuple[FastCodec, SpecialTokens]:
    """Builds the tokenizer that a GGUF file describes.

    Args:
      metadata: the file's key-value pairs, of which ``tokenizer.ggml.*`` are read.
      source: the file's name, for errors.

    Returns:
      The codec, without the unused ids at the end of the vocabulary, and the special tokens.

    Raises:
      UserError: for a model other than byte-level BPE, an unknown ``tokenizer.ggml.pre``, or missing keys.
    """
    tokenizers = require("tokenizers", "gguf")
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise UserError(
            f"{source}: tokenizer.ggml.model={kind!r} is not supported, expected 'gpt2' (byte-level BPE); "
            "take the Hugging Face directory of this model instead, with its tokenizer.json"
        )
    if pre not in _PRE:
        raise UserError(f"{source}: tokenizer.ggml.pre={pre!r} is not known; known: {', '.join(_PRE)}")
    tokens, types, merges = _vocabulary(metadata, source)
    pattern, digits, nfc, ignore_merges = _PRE[pre]
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
    fast.add_tokens(
        [
            tokenizers.AddedToken(token, special=of == _CONTROL, normalized=False)
            for token, of in zip(tokens, types, strict=True)
            if of in (_CONTROL, _USER_DEFINED)
        ]
    )
    special = _special(metadata, len(tokens), source)
    fast.post_processor = _post_processor(tokenizers, metadata, pre, special, tokens)
    return FastCodec(fast), special


def _special(metadata: Mapping[str, Any], size: int, source: str) -> SpecialTokens:
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "padding_token_id", "eot_token_id", "eom_token_id"):
        value = ids[name] = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and not 0 <= value < size:
            raise UserError(f"{source}: tokenizer.ggml.{name}={value} is outside its {size} tokens")
    ends = tuple(i for i in (ids["eot_token_id"], ids["eom_token_id"]) if i is not None)
    return make_special_tokens(ids["bos_token_id"], ids["eos_token_id"], ids["padding_token_id"], ends)


def _post_processor(
    tokenizers: Any, metadata: Mapping[str, Any], pre: str, special: SpecialTokens, tokens: Sequence[str]
) -> Any:
    """What ``add_special`` adds around a text; None for nothing."""
    parts, named = ["$A"], {}
    if special.bos_id is not None and metadata.get("tokenizer.ggml.add_bos_token", pre in _ADDS_BOS):
        named[tokens[special.bos_id]] = special.bos_id
        parts.insert(0, tokens[special.bos_id])
    if special.eos_id is not None and metadata.get("tokenizer.ggml.add_eos_token", False):
        named[tokens[special.eos_id]] = special.eos_id
        parts.append(tokens[special.eos_id])
    if not named:
        return None
    return tokenizers.processors.TemplateProcessing(single=parts, special_tokens=list(named.items()))


def _vocabulary(metadata: Mapping[str, Any], source: str) -> tuple[Sequence[str], Sequence[int], list[tuple[str, str]]]:
    fields: dict[str, Any] = {}
    for name in ("tokens", "merges"):
        fields[name] = metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(fields[name], list) or not all(isinstance(item, str) for item in fields[name]):
            raise UserError(f"{source}: tokenizer.ggml.{name} is missing or not a list of text")
    tokens = fields["tokens"]
    types = list(metadata.get("tokenizer.ggml.token_type", [1] * len(tokens)))
    if len(types) != len(tokens):
        raise UserError(f"{source}: {len(types)} token types for {len(tokens)} tokens")
    end = len(tokens)
    while end and types[end - 1] == _UNUSED:  # rows that pad the embedding
        end -= 1
    if len(set(tokens[:end])) != end:
        raise UserError(f"{source}: tokenizer.ggml.tokens has a duplicate token")
    merges = []
    for merge in fields["merges"]:
        # Spaces inside tokens are written as another letter, so the first space separates the two tokens.
        cut = merge.find(" ", 1)
        if cut < 0:
            raise UserError(f"{source}: tokenizer.ggml.merges has {merge!r}, expected two tokens")
        merges.append((merge[:cut], merge[cut + 1 :]))
    return tokens[:end], types[:end], merges


def _pre_tokenizer(tokenizers: Any, pattern: str | None, digits: bool) -> Any:
    pre = tokenizers.pre_tokenizers
    stages = [pre.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        stages.append(pre.Split(tokenizers.Regex(pattern), behavior="isolated"))
    stages.append(pre.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    return pre.Sequence(stages)
