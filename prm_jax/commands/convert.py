"""``prm-jax convert``: converts a model to a Hugging Face directory."""

import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from prm_jax.errors import UserError
from prm_jax.models.quantization_options import QuantizationOptions


@dataclass(frozen=True)
class Options:
    """Convert a GGUF file (dequantised), Hugging Face model or LoRA adapter (merged) to a Hugging Face directory."""

    source: Annotated[str, tyro.conf.Positional]
    """GGUF file, Hugging Face directory, LoRA adapter directory, name on the hub (org/name), or "smollm2"."""
    target: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory to write: config.json, model.safetensors, tokenizer files."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the parameters; none: as stored (float32 for GGUF)."""
    quantize: Literal["none", "keep", "int8", "int4", "int2"] = "none"
    """Write weights in so many bits, or (keep) exactly as a GGUF file stores them; only prm-jax reads that."""
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    """How they are quantised."""
    overwrite: bool = False
    """Replace an existing model in the target directory."""


def run(options: Options) -> None:
    """Converts, and prints what was written."""
    from prm_jax.models import Tokenizer, find_model, load_weights, save_weights
    from prm_jax.models.quantization import quantize_as

    source = find_model(options.source)
    config, params = load_weights(source, dtype=options.dtype, host=True, keep_quantized=options.quantize == "keep")
    try:
        tokenizer = Tokenizer.load(source)
    except UserError as error:
        raise UserError(f"{error}\nThe weights were read, but a model without its tokenizer cannot be used") from error
    params = quantize_as(config, params, options.quantize, options.quantization, prefix="--")
    save_weights(options.target, config, params, tokenizer=tokenizer, overwrite=options.overwrite)
    size = sum(entry.stat().st_size for entry in options.target.iterdir()) / 2**20
    form = {"none": config.dtype, "keep": "as quantised in the file"}.get(options.quantize, options.quantize)
    print(f"{options.target}: {config.architecture}, {config.num_layers} layers, {form}, {size:.0f} MiB")
