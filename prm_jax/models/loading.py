"""Models that options name, with the options' run-time fields, and fresh ones."""

import dataclasses
import functools
import operator
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from prm_jax.errors import UserError
from prm_jax.models import peft_files
from prm_jax.models.checkpoint_layout import slots
from prm_jax.models.config import DType, ModelConfig
from prm_jax.models.files import read_json
from prm_jax.models.gguf import read_gguf
from prm_jax.models.gguf_blocks import kept_kinds, kept_shapes
from prm_jax.models.gguf_weights import GgufWeights
from prm_jax.models.hub import find_config, find_model
from prm_jax.models.model_options import ModelOptions
from prm_jax.models.quantization import quantize_as
from prm_jax.models.quantized_files import KEY, is_described
from prm_jax.models.sharding import shardings_for
from prm_jax.models.tokenizer import Tokenizer
from prm_jax.models.transformer import init_params
from prm_jax.models.weights import check_path, load_weights

_UNROLL_UP_TO = 8  # layers; a deeper model is scanned, since unrolling costs compilation time


def load_model(options: ModelOptions, *, mesh: Mesh | None = None) -> tuple[ModelConfig, Any, Any]:
    """Loads the model that the options name.

    Args:
      options: ``path`` is whatever ``find_model`` finds.
      mesh: devices to load the parameters onto, shard by shard; None: the default device.

    Returns:
      (config with the options' run-time fields, parameters, tokenizer).

    Raises:
      UserError: see ``load_weights`` and ``Tokenizer.load``.
    """
    path = find_model(options.path)
    keep = options.quantize == "keep"
    apart = options.quantize != "none" and not keep and mesh is None  # matrices go to the device in few bits
    config, params = load_weights(path, mesh=mesh, host=apart, keep_quantized=keep)
    if options.quantize != "none":
        params = frozen_copy(config, params, options)
    return with_runtime(config, options), params, Tokenizer.load(path)


def frozen_copy(config: ModelConfig, params: Any, options: ModelOptions) -> Any:
    """The parameters in the form in which the options keep frozen weights, on the default device or their mesh.

    Raises:
      UserError: see ``quantization.quantize_as``; a mesh that cuts through groups.
    """
    return jax.tree.map(jax.numpy.asarray, quantize_as(config, params, options.quantize, options.quantization))


@functools.lru_cache(maxsize=64)
def param_shapes(config: ModelConfig) -> Any:
    """Shapes and dtypes of a model's parameters."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def frozen_shapes(config: ModelConfig, options: ModelOptions) -> Any:
    """Shapes and dtypes of weights that stay frozen, in the form in which the options keep them; reads headers only.

    Raises:
      UserError: see `frozen_copy`.
    """
    plain = param_shapes(config)
    if options.quantize != "keep":
        return jax.eval_shape(lambda p: quantize_as(config, p, options.quantize, options.quantization), plain)
    path = find_config(options.path)
    if path.suffix != ".gguf":
        return plain
    kinds = kept_kinds(config, GgufWeights(read_gguf(path)))
    plain = jax.tree.map(lambda shape: shape, plain)
    for slot in slots(config):
        if slot.path in kinds:
            *homes, name = slot.path
            functools.reduce(operator.getitem, homes, plain)[name] = kept_shapes(slot, kinds[slot.path])
    return plain


def read_config(options: ModelOptions) -> ModelConfig:
    """The architecture of ``options.path`` with the options' run-time fields, without reading any weights.

    Args:
      options: ``path`` is a Hugging Face directory, its ``config.json``, a LoRA adapter's directory, a GGUF file, or a
        name on the hub, of which the configuration alone is downloaded.

    Returns:
      The configuration; its ``dtype`` is the one that the file declares for the weights, float32 where it says none.

    Raises:
      UserError: nothing there, not a model's configuration, or a field that is missing or not supported.
    """
    path = find_config(options.path)
    if path.suffix != ".json" and not peft_files.is_adapter(path):
        check_path(path)
    if peft_files.is_adapter(path):
        path = peft_files.base_of(path)
    if path.suffix == ".gguf":
        return with_runtime(GgufWeights(read_gguf(path)).config, options)
    file = path / "config.json" if path.is_dir() else path
    values = read_json(file)
    if is_described(values):  # quantised parameters of this library, whose architecture is that of the plain model
        values = {key: value for key, value in values.items() if key != KEY}
    try:
        config = ModelConfig.from_hf(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    stored = values.get("dtype") or values.get("torch_dtype")
    dtype: DType = stored if stored in get_args(DType) else "float32"
    return with_runtime(dataclasses.replace(config, dtype=dtype), options)


def fresh_config(options: ModelOptions, vocab_size: int) -> ModelConfig:
    """The architecture of a fresh model."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        num_kv_heads=options.num_kv_heads,
        head_dim=options.hidden_size // options.num_heads,
    )
    return with_runtime(config, options)


def fresh_params(config: ModelConfig, key: jax.Array, *, mesh: Mesh | None = None) -> Any:
    """Random parameters, compiled so that the same key gives the same bits; on a mesh, each device makes its shards."""
    shardings = None
    if mesh is not None:
        shardings = shardings_for(jax.eval_shape(lambda: init_params(config, jax.random.key(0))), mesh)
    return jax.jit(init_params, static_argnums=0, out_shardings=shardings)(config, key)


def with_runtime(config: ModelConfig, options: ModelOptions) -> ModelConfig:
    """A configuration with the options' run-time fields."""
    unroll = options.scan_unroll or (config.num_layers if config.num_layers <= _UNROLL_UP_TO else 1)
    return dataclasses.replace(
        config,
        compute_dtype=options.compute_dtype,
        remat=options.remat,
        attention=options.attention,
        layers=options.layers,
        scan_unroll=unroll,
        lora_alpha=options.lora_alpha,
    )
