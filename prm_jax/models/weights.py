"""Loading and saving weights: Hugging Face directories (both ways, bit for bit), LoRA adapters and GGUF files."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import checkpoint_layout, peft_files, safetensors_files, tokenizer_files
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import beside, check_regular, read_json, sync_directory, write_json
from prm_jax.models.gguf import read_gguf
from prm_jax.models.gguf_weights import GgufWeights
from prm_jax.models.hub import find_model
from prm_jax.models.lora import join
from prm_jax.models.tokenizer import Tokenizer, check_fits

_CONFIG = "config.json"
_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def load_weights(
    path: str | pathlib.Path, *, dtype: Any = None, host: bool = False, merge_adapters: bool = True
) -> tuple[ModelConfig, checkpoint_layout.Params]:
    """Loads a pretrained model; its tokenizer is loaded by ``Tokenizer.load(path)``, from the same path.

    Args:
      path: a Hugging Face directory (``config.json`` with ``model.safetensors``, or the shards of
        ``model.safetensors.index.json``), a directory with a PEFT LoRA adapter, a ``.gguf`` file of any
        quantisation, which is dequantised, or a name on the Hugging Face hub (see ``find_model``).
      dtype: of the parameters: "float32", "bfloat16" or "float16" (or the dtype itself).  None keeps the
        dtype that all tensors of a safetensors checkpoint share; mixed checkpoints and GGUF give float32.
      host: keep the leaves as NumPy arrays, to be placed on a mesh; otherwise they are transferred to the default
        device one by one.
      merge_adapters: add an adapter to its base model's kernels, as training the base model further needs.  False
        keeps it apart, joined to the parameters as float32 ``lora_a`` and ``lora_b`` (see ``split``), and sets
        the config's ``lora_alpha``.

    Returns:
      The model's configuration, with its ``dtype`` that of the parameters, and the parameters.

    Raises:
      UserError: for checkpoints that are missing, truncated, corrupted, pickled, of another architecture or dtype,
        or do not fit their configuration.
    """
    path = find_model(path)
    if peft_files.is_adapter(path):
        return _load_adapted(path, _name(dtype), host=host, merge=merge_adapters)
    check_path(path)
    config, source, stored = _open(path)
    name = _name(dtype) or stored
    params = checkpoint_layout.assemble(config, source.read, dtype=_DTYPES[name], place=_same if host else _to_device)
    return dataclasses.replace(config, dtype=name), params  # type: ignore[arg-type]


def save_weights(
    path: str | pathlib.Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes a Hugging Face directory that ``load_weights`` and ``transformers`` read, bit for bit.

    The directory is written under a temporary name and then renamed, so that a reader sees either the old one or the
    new one.

    Args:
      path: the directory to create.
      config: the model.
      params: its parameters, arrays of NumPy or JAX; with adapters merged.
      tokenizer: written too, with its chat template.
      dtype: to cast to; None keeps each leaf's.
      max_shard_bytes: size above which weights are split into files with an index.
      overwrite: replace an existing checkpoint.

    Raises:
      UserError: for parameters that do not fit the config (LoRA adapters included), a tokenizer with more tokens than
        the model, an existing path, or a write that fails.
    """
    path = pathlib.Path(path)
    found = checkpoint_layout.check_params(config, params)
    specs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for slot in checkpoint_layout.slots(config):
        kind = _DTYPES[dtype_name(found[slot.path].dtype if dtype is None else dtype)]
        specs |= dict.fromkeys(slot.names, (slot.shape, kind))
    if tokenizer is not None:
        check_fits(tokenizer, config)
    _check_target(path, overwrite)
    kinds = {kind.name for _, kind in specs.values()}
    config = dataclasses.replace(config, dtype=kinds.pop() if len(kinds) == 1 else "float32")  # type: ignore[arg-type]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = beside(path, "new")
        new.mkdir()
        try:
            _write(new, config, found, specs, tokenizer, max_shard_bytes)
            _put_in_place(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def dtype_name(dtype: Any) -> str:
    """The name of a dtype for parameters.

    Raises:
      UserError: for a dtype other than float32, bfloat16 and float16.
    """
    try:
        name = np.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UserError(f"parameters of dtype {name} are not supported; expected {', '.join(_DTYPES)}")
    return name


def _name(dtype: Any) -> str | None:
    return None if dtype is None else dtype_name(dtype)


def _open(path: pathlib.Path) -> tuple[ModelConfig, GgufWeights | safetensors_files.Shards, str]:
    """(config, tensors that fit it, the dtype that they share or else float32) of a directory or GGUF file."""
    source: GgufWeights | safetensors_files.Shards
    if path.is_dir():
        config = ModelConfig.from_hf(read_json(path / _CONFIG))
        source = safetensors_files.Shards(path)
        kinds = set(source.dtypes.values())
        stored = kinds.pop() if len(kinds) == 1 else "float32"
        checkpoint_layout.check_tensors(config, source.shapes, source=str(path))
    else:
        source = GgufWeights(read_gguf(path))
        config, stored = source.config, "float32"
        checkpoint_layout.check_tensors(config, source.shapes, source=str(path), spell=source.spell)
    if config.tie_word_embeddings and checkpoint_layout.TIED_HEAD in source.shapes:
        _check_tied(path, source)
    return config, source, stored


def _load_adapted(
    path: pathlib.Path, dtype: str | None, *, host: bool, merge: bool
) -> tuple[ModelConfig, checkpoint_layout.Params]:
    """The base model of an adapter directory with the adapter merged, or joined to it."""
    base = peft_files.base_of(path)
    check_path(base)
    config, source, stored = _open(base)
    adapter = peft_files.Adapter(path, config)
    name = dtype or stored
    place = _same if host else _to_device

    def read(tensor: str) -> np.ndarray:
        return adapter.merge(tensor, source.read(tensor)) if merge else source.read(tensor)

    params = checkpoint_layout.assemble(config, read, dtype=_DTYPES[name], place=place)
    config = dataclasses.replace(config, dtype=name)  # type: ignore[arg-type]
    if merge:
        return config, params
    alpha, adapters = adapter.tree()
    placed = _map_leaves(place, adapters)
    return dataclasses.replace(config, lora_alpha=alpha), join(params, placed)


def _map_leaves(function: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _map_leaves(function, v) if isinstance(v, Mapping) else function(v) for k, v in tree.items()}


def check_path(path: pathlib.Path) -> None:
    """Refuses what cannot be a checkpoint, by its name and kind.

    Raises:
      UserError: nothing there, pickled weights, a directory without a configuration, or a file of another kind.
    """
    if path.name.endswith(safetensors_files.PICKLES):
        raise UserError(safetensors_files.pickle_advice(str(path)))
    if not path.exists():
        raise UserError(
            f"no weights at {path}: there is no such file or directory; expected a path, or a name on the Hugging Face "
            "hub (org/name)"
        )
    if not path.is_dir():
        check_regular(path)
    if path.is_dir() and not (path / _CONFIG).is_file():
        raise UserError(f"{path} has no {_CONFIG}; {safetensors_files.what_is_there(path)}")
    if path.is_file() and path.suffix != ".gguf":
        raise UserError(
            f"{path} is not a checkpoint: expected a directory with {_CONFIG} and safetensors, or a .gguf file"
        )


def _check_tied(path: pathlib.Path, source: GgufWeights | safetensors_files.Shards) -> None:
    head, embedding = source.read(checkpoint_layout.TIED_HEAD), source.read("model.embed_tokens.weight")
    if head.dtype != embedding.dtype or head.shape != embedding.shape or head.tobytes() != embedding.tobytes():
        raise UserError(
            f"{path}: {_CONFIG} sets tie_word_embeddings, but {checkpoint_layout.TIED_HEAD} differs from the "
            "embedding; set tie_word_embeddings to false if the head was trained on its own"
        )


def _same(leaf: np.ndarray) -> np.ndarray:
    return leaf


def _to_device(leaf: np.ndarray) -> Any:
    import jax

    return jax.device_put(leaf)


def _to_host(leaf: Any) -> np.ndarray:
    if not getattr(leaf, "is_fully_addressable", True):
        raise UserError(
            "the parameters are sharded over several processes; gather them before saving: "
            "jax.experimental.multihost_utils.process_allgather(params, tiled=True)"
        )
    return np.asarray(leaf)


def _write(
    directory: pathlib.Path,
    config: ModelConfig,
    found: Mapping[tuple[str, ...], Any],
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tokenizer: Tokenizer | None,
    max_shard_bytes: int,
) -> None:
    description = config.to_hf()
    if tokenizer is not None:
        tokenizer.save(directory)
        special = tokenizer.special
        ids = {"bos": special.bos_id, "eos": special.eos_id, "pad": special.pad_id}
        description |= {f"{name}_token_id": index for name, index in ids.items()}
    stream = (
        (name, tensor.astype(specs[name][1], copy=False))
        for slot in checkpoint_layout.slots(config)
        for name, tensor in checkpoint_layout.tensors(slot, _to_host(found[slot.path]))
    )
    safetensors_files.write_shards(directory, specs, stream, max_bytes=max_shard_bytes)
    write_json(directory / _CONFIG, description)


def _check_target(path: pathlib.Path, overwrite: bool) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"cannot write a checkpoint to {path}: it is not a directory")
    there = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if there and not overwrite:
        raise UserError(f"{path} exists and is not empty; give another path, or overwrite=True")
    foreign = [name for name in there if not _is_ours(name)]
    if foreign:
        raise UserError(
            f"{path} contains other files, which overwriting would delete: {checkpoint_layout.first(foreign)}; give "
            "another path"
        )


def _is_ours(name: str) -> bool:
    known = (_CONFIG, safetensors_files.INDEX, safetensors_files.SUMS, *tokenizer_files.FILES)
    return name in known or (name.startswith("model") and name.endswith(".safetensors"))


def _put_in_place(new: pathlib.Path, path: pathlib.Path) -> None:
    """Renames; an old checkpoint is kept under another name until the new one is in place."""
    sync_directory(new)
    if path.exists() and any(path.iterdir()):
        aside = beside(path, "old")
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except BaseException:
            os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(new, path)
    sync_directory(path.parent)
