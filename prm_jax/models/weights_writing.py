"""Saving weights as Hugging Face directories, bit for bit, with bounded memory and atomically."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import checkpoint_layout, quantized_files, safetensors_files, tokenizer_files
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import beside, sync_directory, write_json
from prm_jax.models.qtensor import is_quantized
from prm_jax.models.tensor_blocks import tensor_blocks
from prm_jax.models.tokenizer import Tokenizer, check_fits
from prm_jax.models.weights import CONFIG, DTYPES, dtype_name

Specs = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and dtype of every tensor, in the order of the files."""
Blocks = Iterator[tuple[str, np.ndarray]]


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
    new one. Leaves are copied to the host in blocks of at most 256 MiB, or of one tensor where a leaf spans several
    processes and its rows are split. If any leaf spans several processes, all of them call this with the same
    arguments, and the first one writes.

    Args:
      path: the directory to create.
      config: the model.
      params: its parameters, arrays of NumPy or JAX with any sharding; with adapters merged. Quantised ones are written
        as they are, which only ``load_weights`` reads; ``merge`` expands them.
      tokenizer: written too, with its chat template.
      dtype: to cast to; None keeps each leaf's.
      max_shard_bytes: size above which weights are split into files with an index.
      overwrite: replace an existing checkpoint.

    Raises:
      UserError: for parameters that do not fit the config (LoRA adapters included), a tokenizer with more tokens than
        the model, an existing path, or a write that fails, in every process.
    """
    path = pathlib.Path(path)
    if tokenizer is not None:
        check_fits(tokenizer, config)
    if is_quantized(params):
        _save_quantized(path, config, params, tokenizer, dtype, max_shard_bytes, overwrite)
        return
    found = checkpoint_layout.check_params(config, params)
    specs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for slot in checkpoint_layout.slots(config):
        kind = DTYPES[dtype_name(found[slot.path].dtype if dtype is None else dtype)]
        specs |= dict.fromkeys(slot.names, (slot.tensor_shape, kind))
    kinds = {kind.name for _, kind in specs.values()}
    config = dataclasses.replace(config, dtype=kinds.pop() if len(kinds) == 1 else "float32")  # type: ignore[arg-type]
    blocks = (
        block
        for group in _sharing(checkpoint_layout.slots(config))
        # Tensors that hold several leaves are written one by one, the others leaf by leaf.
        for only in ([None] if len(group) == 1 else range(len(group[0].names)))
        for slot in group
        for block in tensor_blocks(slot, found[slot.path], specs[slot.names[0]][1], only=only)
    )

    def write() -> None:
        _check_target(path, overwrite)
        _write_directory(path, config, specs, blocks, tokenizer, max_shard_bytes)

    if any(not getattr(leaf, "is_fully_addressable", True) for leaf in found.values()):
        _write_together(path, write, blocks)
    else:
        write()


def _sharing(slots: list[checkpoint_layout.Slot]) -> list[list[checkpoint_layout.Slot]]:
    """Leaves grouped by the tensors that hold them."""
    groups: dict[str, list[checkpoint_layout.Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.name, []).append(slot)
    return list(groups.values())


def _save_quantized(
    path: pathlib.Path, config: ModelConfig, params: Mapping[str, Any], tokenizer: Tokenizer | None, dtype: Any,
    max_shard_bytes: int, overwrite: bool,
) -> None:  # fmt: skip
    found = quantized_files.arrays(params)
    if dtype is not None:
        raise UserError("quantised parameters are saved as they are: leave dtype out, or expand them with models.merge")
    if any(not getattr(leaf, "is_fully_addressable", True) for leaf in found.values()):
        raise UserError("quantised parameters that span several processes are not saved: expand them with models.merge")
    _check_target(path, overwrite)
    specs = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in found.items()}
    entry = {quantized_files.KEY: quantized_files.describe(params, config.dtype)}
    _write_directory(path, config, specs, quantized_files.blocks(params), tokenizer, max_shard_bytes, entry)


def _write_together(path: pathlib.Path, write: Any, blocks: Blocks) -> None:
    """The first process writes; the others take part in fetching each block, and learn whether it succeeded."""
    import jax
    from jax.experimental import multihost_utils

    failure: UserError | None = None
    if jax.process_index() == 0:
        try:
            write()
        except UserError as error:
            failure = error
    for _ in blocks:  # what a failed write has left too, since the other processes wait for it
        pass
    written = bool(multihost_utils.broadcast_one_to_all(np.asarray(failure is None)))
    if failure is not None:
        raise failure
    if not written:
        raise UserError(f"the first process could not write {path}; its own message says why")


def _write_directory(
    path: pathlib.Path,
    config: ModelConfig,
    specs: Specs,
    blocks: Blocks,
    tokenizer: Tokenizer | None,
    max_shard_bytes: int,
    entries: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes under a temporary name beside `path`, with more entries of the config, and puts it in its place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = beside(path, "new")
        new.mkdir()
        try:
            description = config.to_hf() | dict(entries)
            if tokenizer is not None:
                tokenizer.save(new)
                special = tokenizer.special
                ids = {"bos": special.bos_id, "eos": special.eos_id, "pad": special.pad_id}
                description |= {f"{name}_token_id": index for name, index in ids.items()}
            safetensors_files.write_shards(new, specs, blocks, max_bytes=max_shard_bytes)
            write_json(new / CONFIG, description)
            _put_in_place(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


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
    known = (CONFIG, safetensors_files.INDEX, safetensors_files.SUMS, *tokenizer_files.FILES)
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
