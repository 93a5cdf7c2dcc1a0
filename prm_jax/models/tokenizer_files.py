"""Tokenizer files of a checkpoint: those of a Hugging Face directory, or a GGUF file's metadata."""

import functools
import hashlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from prm_jax.errors import UserError, require
from prm_jax.models import gguf, gguf_tokenizer, peft_files
from prm_jax.models.char_codec import SPECIAL, CharCodec
from prm_jax.models.child_process import ChildFailure, ChildProcess
from prm_jax.models.codec import Codec
from prm_jax.models.fast_codec import FastCodec
from prm_jax.models.files import read_json, read_text, short, write_json, write_text
from prm_jax.models.special_tokens import SpecialTokens, make_special_tokens

_TOKENIZER, _CONFIG, _GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
_SPECIAL_MAP, _MODEL = "special_tokens_map.json", "config.json"
_TEMPLATE = "chat_template.jinja"
# What loading a tokenizer of several hundred thousand tokens needs, with a wide margin.
_PROBE_MEMORY, _PROBE_SECONDS = 6 << 30, 60.0
FILES = (_TOKENIZER, _CONFIG, _GENERATION, _SPECIAL_MAP, _TEMPLATE)


class Parts(NamedTuple):
    """What a ``Tokenizer`` is made of."""

    codec: Codec
    special: SpecialTokens
    chat_template: str | None


def load(path: pathlib.Path) -> Parts:
    """See ``Tokenizer.load``."""
    if path.suffix == ".gguf":
        metadata = gguf.read_gguf(path).metadata
        codec, special = gguf_tokenizer.load(metadata, source=str(path))
        parts = Parts(codec, special, metadata.get("tokenizer.chat_template"))
    else:
        parts = _load_directory(path)
    if not parts.special.eos_ids:
        logging.getLogger(__name__).warning(
            "the tokenizer at %s has no end-of-text token (none in %s): responses end only at stop strings or at the "
            "token limit; name one as eos_token in %s",
            path, "its metadata" if path.suffix == ".gguf" else f"{_CONFIG}, {_SPECIAL_MAP}, {_GENERATION}, {_MODEL}",
            _CONFIG,
        )  # fmt: skip
    return parts


def save(parts: Parts, directory: pathlib.Path) -> None:
    """See ``Tokenizer.save``."""
    directory.mkdir(parents=True, exist_ok=True)
    codec, special = parts.codec, parts.special
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["clean_up_tokenization_spaces"] = False
    config |= codec.config_json()
    for name, index in (("bos", special.bos_id), ("eos", special.eos_id), ("pad", special.pad_id)):
        if index is not None:
            config[f"{name}_token"] = codec.tokens[index]
    if parts.chat_template is not None:
        config["chat_template"] = parts.chat_template
    generation = {
        "bos_token_id": special.bos_id,
        "eos_token_id": list(special.eos_ids) or None,
        "pad_token_id": special.pad_id,
    }
    write_text(directory / _TOKENIZER, codec.to_json())
    write_json(directory / _CONFIG, config)
    write_json(directory / _GENERATION, {k: v for k, v in generation.items() if v is not None})
    for other in (_TEMPLATE, _SPECIAL_MAP):  # they would contradict tokenizer_config.json
        (directory / other).unlink(missing_ok=True)


def _load_directory(path: pathlib.Path) -> Parts:
    if peft_files.is_adapter(path) and not (path / _TOKENIZER).is_file():
        return load(peft_files.base_of(path))
    file = path / _TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no tokenizer at {path}: {_what_is_there(path)}")
    if file.suffix != ".json":
        raise UserError(f"{path} is not a tokenizer: expected a directory, a tokenizer.json or a .gguf file")
    config = read_json(file.parent / _CONFIG, missing={})
    template = _chat_template(file.parent, config)
    if "char_alphabet" in config:
        return Parts(CharCodec(str(config["char_alphabet"])), SPECIAL, template)
    fast = _read_fast(file)
    kept = {k: v for k, v in config.items() if k not in ("chat_template", "auto_map")}
    return Parts(FastCodec(fast, kept), _special_tokens(fast, config, file.parent), template)


def _special_tokens(fast: Any, config: Mapping[str, Any], directory: pathlib.Path) -> SpecialTokens:
    """Tokens that ``tokenizer_config.json`` names, or else ``special_tokens_map.json``, and all end tokens."""
    fallback = read_json(directory / _SPECIAL_MAP, missing={})
    found: dict[str, int | None] = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        source = _CONFIG if config.get(name) is not None else _SPECIAL_MAP
        token = (config if source == _CONFIG else fallback).get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        found[name] = None if token is None else fast.token_to_id(str(token))
        if token is not None and found[name] is None:
            raise UserError(f"{directory / source}: {name}={token!r} is not a token of {_TOKENIZER}")
    return make_special_tokens(found["bos_token"], found["eos_token"], found["pad_token"], _generation_ends(directory))


def _read_fast(file: pathlib.Path) -> Any:
    """The tokenizer of a file, which is tried in another process first: its contents are not trusted."""
    tokenizers = require("tokenizers", "hf")
    try:
        text = read_text(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing") from error
    _probe(file, hashlib.sha256(text.encode()).hexdigest())
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{file} cannot be read by the tokenizers package: {error}") from error


@functools.lru_cache(maxsize=64)
def _probe(file: pathlib.Path, digest: str) -> None:
    """Loads and uses a tokenizer in a process with limits, once for each file's contents."""
    del digest
    process = ChildProcess(pathlib.Path(__file__).with_name("tokenizer_probe.py"), memory_bytes=_PROBE_MEMORY)
    try:
        request = {"path": str(file.absolute())}
        problem = process.ask(request, seconds=_PROBE_SECONDS, max_reply=10_000).get("problem")
    except ChildFailure as error:
        problem = f"using it {error}"
    finally:
        process.close()
    if problem:
        raise UserError(f"{file} is not loaded: {short(problem, 400)}")


def _chat_template(directory: pathlib.Path, config: dict[str, Any]) -> str | None:
    file = directory / _TEMPLATE
    if file.is_file():
        return read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise UserError(f"{directory / _CONFIG}: chat_template must be text, found {type(template).__name__}")
    return template


def _generation_ends(directory: pathlib.Path) -> tuple[int, ...]:
    """End tokens of ``generation_config.json``; a checkpoint without one keeps them in ``config.json``."""
    file = directory / (_GENERATION if (directory / _GENERATION).exists() else _MODEL)
    ends = read_json(file, missing={}).get("eos_token_id")
    if ends is None:
        return ()
    listed = ends if isinstance(ends, list) else [ends]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in listed):
        raise UserError(f"{file}: eos_token_id must be an id or a list of ids, found {ends!r}")
    return tuple(listed)


def _what_is_there(path: pathlib.Path) -> str:
    if not path.exists():
        return "there is no such file or directory"
    if not path.is_dir():
        return "not a regular file or directory"
    if any((path / name).exists() for name in ("tokenizer.model", "vocab.json", "vocab.txt")):
        return (
            "it has the files of a slow tokenizer but no tokenizer.json; convert them with "
            "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return "expected a tokenizer.json in it"
