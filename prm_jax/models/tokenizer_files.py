"""Where a checkpoint keeps its tokenizer: files of a Hugging Face directory, or a GGUF file's metadata."""

import pathlib
from typing import Any

from prm_jax.errors import UserError, require
from prm_jax.models.char_tokenizer import CharTokenizer
from prm_jax.models.fast_tokenizer import FastTokenizer, special_tokens
from prm_jax.models.files import read_json, write_json, write_text
from prm_jax.models.tokenizer import Tokenizer

_TOKENIZER, _CONFIG, _GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
_TEMPLATE = "chat_template.jinja"
FILES = (_TOKENIZER, _CONFIG, _GENERATION, _TEMPLATE)


def load(path: pathlib.Path) -> Tokenizer:
    """See ``Tokenizer.load``."""
    if path.suffix == ".gguf":
        from prm_jax.models import gguf, gguf_tokenizer

        return gguf_tokenizer.load(gguf.read_gguf(path).metadata, source=str(path))
    file = path / _TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no tokenizer at {path}: {_what_is_there(path)}")
    if file.suffix != ".json":
        raise UserError(f"{path} is not a tokenizer: expected a directory, a tokenizer.json or a .gguf file")
    config = read_json(file.parent / _CONFIG, missing={})
    if "char_alphabet" in config:
        return CharTokenizer(str(config["char_alphabet"]), chat_template=_chat_template(file.parent, config))
    fast = _read_fast(file)
    kept = {k: v for k, v in config.items() if k not in ("chat_template", "auto_map")}
    special = special_tokens(fast, config, _generation_ends(file.parent))
    return FastTokenizer(fast, special=special, chat_template=_chat_template(file.parent, config), config=kept)


def save(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    """See ``Tokenizer.save``."""
    directory.mkdir(parents=True, exist_ok=True)
    special = tokenizer.special
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["clean_up_tokenization_spaces"] = False
    config |= tokenizer.config_json()
    for name, index in (("bos", special.bos_id), ("eos", special.eos_id), ("pad", special.pad_id)):
        if index is not None:
            config[f"{name}_token"] = tokenizer.tokens[index]
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    generation = {
        "bos_token_id": special.bos_id,
        "eos_token_id": list(special.eos_ids) or None,
        "pad_token_id": special.pad_id,
    }
    write_text(directory / _TOKENIZER, tokenizer.to_json())
    write_json(directory / _CONFIG, config)
    write_json(directory / _GENERATION, {k: v for k, v in generation.items() if v is not None})
    (directory / _TEMPLATE).unlink(missing_ok=True)  # would count before the one in tokenizer_config.json


def _read_fast(file: pathlib.Path) -> Any:
    tokenizers = require("tokenizers", "hf")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{file} is not a tokenizer that the tokenizers package reads: {error}") from error


def _chat_template(directory: pathlib.Path, config: dict[str, Any]) -> str | None:
    file = directory / _TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise UserError(f"{directory / _CONFIG}: chat_template must be text, found {type(template).__name__}")
    return template


def _generation_ends(directory: pathlib.Path) -> tuple[int, ...]:
    ends = read_json(directory / _GENERATION, missing={}).get("eos_token_id")
    if ends is None:
        return ()
    listed = ends if isinstance(ends, list) else [ends]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in listed):
        raise UserError(f"{directory / _GENERATION}: eos_token_id must be an id or a list, found {ends!r}")
    return tuple(listed)


def _what_is_there(path: pathlib.Path) -> str:
    if not path.exists():
        return "there is no such file or directory"
    if not path.is_dir():
        return "that is not a file"
    if any((path / name).exists() for name in ("tokenizer.model", "vocab.json", "vocab.txt")):
        return (
            "it holds the older files of a slow tokenizer and no tokenizer.json; convert them with "
            "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return "expected a tokenizer.json in it"
