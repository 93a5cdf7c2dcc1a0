"""Weights in and out: Hugging Face directories of safetensors (in and out, bit for bit) and GGUF files (in)."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import checkpoint_layout, safetensors_files, tokenizer_files
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import beside, read_json, sync_directory, write_json
from prm_jax.models.gguf import read_gguf
from prm_jax.models.gguf_weights import GgufWeights
from prm_jax.models.tokenizer import Tokenizer, check_fits

_CONFIG = "config.json"
_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def load_weights(
    path: str | pathlib.Path, *, dtype: Any = None, host: bool = False
) -> tuple[ModelConfig, checkpoint_layout.Params]:
    """Loads a pretrained model.

    Args:
      path: a Hugging Face directory (``config.json`` with ``model.safetensors``, or the shards of
        ``model.safetensors.index.json``), or a ``.gguf`` file of any quantisation, which is undone.
      dtype: of the parameters: "float32", "bfloat16" or "float16" (or the dtype itself).  None keeps the
        dtype that all tensors of a safetensors checkpoint share; for mixed ones, and for GGUF, it is float32.
      host: leave the leaves as NumPy arrays, to be placed on a mesh; otherwise they go to the default device
        one by one.

    Returns:
      The model's configuration, its ``dtype`` that of the parameters, and the parameters.

    Raises:
      UserError: for what is missing, truncated, corrupted, pickled, of another architecture or dtype, or does
        not fit its configuration.
    """
    path = pathlib.Path(path)
    _check_path(path)
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
    name = stored if dtype is None else dtype_name(dtype)
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
    """Writes a Hugging Face directory that ``load_weights`` and ``transformers`` read; exact, bit for bit.

    All of it is written beside ``path`` and then renamed, so that a reader sees the old directory or the new
    one, whatever happens in between.

    Args:
      path: the directory to make.
      config: the model.
      params: its parameters, arrays of NumPy or JAX; adapters merged.
      tokenizer: written along with its chat template, where given.
      dtype: to cast to; None keeps each leaf's.
      max_shard_bytes: size above which weights are split into files with an index.
      overwrite: replace a checkpoint that is there already.

    Raises:
      UserError: for parameters that are not the config's (LoRA adapters included), a tokenizer with more
        tokens than the model, a path in use, or a disk that refuses.
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
    """The name of a dtype that parameters may have.

    Raises:
      UserError: for any other.
    """
    try:
        name = np.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UserError(f"parameters of dtype {name} are not supported; expected {', '.join(_DTYPES)}")
    return name


def _check_path(path: pathlib.Path) -> None:
    if path.name.endswith(safetensors_files.PICKLES):
        raise UserError(safetensors_files.pickle_advice(str(path)))
    if not path.exists():
        raise UserError(
            f"no weights at {path}: there is no such file or directory (a model of the Hugging Face hub is "
            "fetched first: hf download NAME --local-dir DIRECTORY)"
        )
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
            "the parameters are spread over several processes; gather them before saving: "
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
            f"{path} holds more than a checkpoint, which overwriting would delete: {checkpoint_layout.first(foreign)}; "
            "give another path"
        )


def _is_ours(name: str) -> bool:
    known = (_CONFIG, safetensors_files.INDEX, safetensors_files.SUMS, *tokenizer_files.FILES)
    return name in known or (name.startswith("model") and name.endswith(".safetensors"))


def _put_in_place(new: pathlib.Path, path: pathlib.Path) -> None:
    """Renames; an old checkpoint stands aside until the new one is there, and is deleted last."""
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
