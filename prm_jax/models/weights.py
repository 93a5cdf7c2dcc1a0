"""Loading weights: Hugging Face directories, bit for bit, LoRA adapters and GGUF files, onto one device or a mesh."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import checkpoint_layout, peft_files, safetensors_files
from prm_jax.models.checkpoint_layout import Params
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import check_regular, read_json
from prm_jax.models.gguf import read_gguf
from prm_jax.models.gguf_blocks import kept_kinds, kept_leaf
from prm_jax.models.gguf_weights import GgufWeights
from prm_jax.models.hub import find_model
from prm_jax.models.lora import join
from prm_jax.models.qtensor import QTensor
from prm_jax.models.quantized_files import is_described, load_quantized
from prm_jax.models.sharded_assembly import HOST_BYTES, ReadPart, assemble_sharded
from prm_jax.models.tensor_file import Index

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from prm_jax.models.sharding import Rule

CONFIG = "config.json"
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_ROWS = 4096
"""Rows of an embedding that are compared at once."""


def load_weights(
    path: str | pathlib.Path,
    *,
    dtype: Any = None,
    host: bool = False,
    merge_adapters: bool = True,
    mesh: "Mesh | None" = None,
    rules: "Sequence[Rule] | None" = None,
    keep_quantized: bool = False,
) -> tuple[ModelConfig, Params]:
    """Loads a pretrained model; its tokenizer is loaded by ``Tokenizer.load(path)``, from the same path.

    Args:
      path: a Hugging Face directory (``config.json`` with ``model.safetensors``, or the shards of
        ``model.safetensors.index.json``), a directory with a PEFT LoRA adapter, a ``.gguf`` file of any
        quantisation, which is dequantised (but see `keep_quantized`), a directory of quantised parameters that
        ``save_weights`` wrote, which stay as they are, or a name on the Hugging Face hub (see ``find_model``).
      dtype: of the parameters: "float32", "bfloat16" or "float16" (or the dtype itself).  None keeps the
        dtype that all tensors of a safetensors checkpoint share; mixed checkpoints and GGUF give float32. Of
        quantised parameters, it is the dtype of the others.
      host: keep the leaves as NumPy arrays, to be placed on a mesh; otherwise they are transferred to the default
        device one by one.
      merge_adapters: add an adapter to its base model's kernels, as training the base model further needs.  False
        keeps it apart, joined to the parameters as float32 ``lora_a`` and ``lora_b`` (see ``split``), and sets
        the config's ``lora_alpha``.
      mesh: devices to load onto, those of other processes included. Each process reads the parts of the files that its
        own devices hold, and at most 1 GiB of shards (or one shard) is buffered on the host; GGUF files and adapters
        are read tensor by tensor. None: the default device.
      rules: how leaves are split over the mesh; None: ``sharding.RULES``.
      keep_quantized: kernels that a GGUF file stores as Q8_0, Q4_0 or Q4_1, alike in all layers, stay in 8 or 4 bits
        (`QTensor`) with exactly the file's values; embedding and head are dequantised.

    Returns:
      The model's configuration, with its ``dtype`` that of the parameters, and the parameters.

    Raises:
      UserError: for checkpoints that are missing, truncated, corrupted, pickled, of another architecture or dtype,
        or do not fit their configuration; a mesh axis that does not divide a dimension that it must split; nothing
        that could be kept.
    """
    if host and mesh is not None:
        raise ValueError("host=True keeps the parameters on the host; give it or a mesh, not both")
    path = find_model(path)
    where = _Where(host, mesh, rules)
    if (path / CONFIG).is_file() and is_described(read_json(path / CONFIG)):
        config, quantized = load_quantized(path, _name(dtype))
        return config, where.place(quantized)
    if keep_quantized and path.suffix != ".gguf":
        raise UserError(
            f"{path} is not a GGUF file; only kernels of these can stay as they are stored (keep): choose int8 or int4"
        )
    if peft_files.is_adapter(path):
        return _load_adapted(path, _name(dtype), where, merge=merge_adapters)
    check_path(path)
    config, source, stored = _open(path)
    name = _name(dtype) or stored
    if keep_quantized:
        params = where.place(_kept(config, source, DTYPES[name]))
    else:
        params = where.assemble(config, source.read, DTYPES[name], at_once=isinstance(source, GgufWeights))
    return dataclasses.replace(config, dtype=name), params  # type: ignore[arg-type]


def dtype_name(dtype: Any) -> str:
    """The name of a dtype for parameters.

    Raises:
      UserError: for a dtype other than float32, bfloat16 and float16.
    """
    try:
        name = np.dtype(DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise UserError(f"parameters of dtype {name} are not supported; expected {', '.join(DTYPES)}")
    return name


def _name(dtype: Any) -> str | None:
    return None if dtype is None else dtype_name(dtype)


def _open(path: pathlib.Path) -> tuple[ModelConfig, GgufWeights | safetensors_files.Shards, str]:
    """(config, tensors that fit it, the dtype that they share or else float32) of a directory or GGUF file."""
    source: GgufWeights | safetensors_files.Shards
    if path.is_dir():
        config = ModelConfig.from_hf(read_json(path / CONFIG))
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


@dataclasses.dataclass(frozen=True)
class _Where:
    """Where parameters are put: the host, the default device, or a mesh."""

    host: bool
    mesh: "Mesh | None"
    rules: "Sequence[Rule] | None"

    def assemble(self, config: ModelConfig, read: ReadPart, dtype: np.dtype, *, at_once: bool) -> Params:
        """The parameters; `at_once`: read every tensor once, since parts cost as much as the whole."""
        if self.mesh is None:
            place = _same if self.host else _to_device
            return checkpoint_layout.assemble(config, read, dtype=dtype, place=place)
        limit = sys.maxsize if at_once else HOST_BYTES
        return assemble_sharded(config, read, dtype=dtype, mesh=self.mesh, rules=self.rules, host_bytes=limit)

    def place(self, tree: Params) -> Params:
        """Arrays from the host."""
        if self.mesh is None:
            return tree if self.host else _map_leaves(_to_device, tree)
        from prm_jax.models.sharding import RULES, shard_params

        placed: Params = shard_params(tree, self.mesh, RULES if self.rules is None else self.rules)
        return placed


def _kept(config: ModelConfig, source: Any, dtype: np.dtype) -> Params:
    """The parameters on the host, with kernels in few bits where the file has them."""
    kinds = kept_kinds(config, source)

    def leaf_of(slot: checkpoint_layout.Slot) -> QTensor | None:
        return kept_leaf(source, slot, kinds[slot.path]) if slot.path in kinds else None

    return checkpoint_layout.assemble(config, source.read, dtype=dtype, place=_same, leaf_of=leaf_of)


def _load_adapted(
    path: pathlib.Path, dtype: str | None, where: _Where, *, merge: bool
) -> tuple[ModelConfig, Params]:
    """The base model of an adapter directory with the adapter merged, or joined to it."""
    base = peft_files.base_of(path)
    check_path(base)
    config, source, stored = _open(base)
    adapter = peft_files.Adapter(path, config)
    name = dtype or stored

    def read(tensor: str, index: Index | None = None) -> np.ndarray:
        part = source.read(tensor, index)
        return adapter.merge(tensor, part, index) if merge else part

    params = where.assemble(config, read, DTYPES[name], at_once=isinstance(source, GgufWeights))
    config = dataclasses.replace(config, dtype=name)  # type: ignore[arg-type]
    if merge:
        return config, params
    alpha, adapters = adapter.tree()
    return dataclasses.replace(config, lora_alpha=alpha), join(params, where.place(adapters))


def _map_leaves(function: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, QTensor) for value in tree.values()):
        import jax

        return {k: jax.tree.map(function, v) for k, v in tree.items()}
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
    if path.is_dir() and not (path / CONFIG).is_file():
        raise UserError(f"{path} has no {CONFIG}; {safetensors_files.what_is_there(path)}")
    if path.is_file() and path.suffix != ".gguf":
        raise UserError(
            f"{path} is not a checkpoint: expected a directory with {CONFIG} and safetensors, or a .gguf file"
        )


def _check_tied(path: pathlib.Path, source: GgufWeights | safetensors_files.Shards) -> None:
    names = (checkpoint_layout.TIED_HEAD, "model.embed_tokens.weight")
    same = source.shapes[names[0]] == source.shapes[names[1]]
    for start in range(0, source.shapes[names[1]][0] if same else 0, _ROWS):
        head, embedding = (source.read(name, (slice(start, start + _ROWS),)) for name in names)
        same = same and head.dtype == embedding.dtype and head.tobytes() == embedding.tobytes()
    if not same:
        raise UserError(
            f"{path}: {CONFIG} sets tie_word_embeddings, but {checkpoint_layout.TIED_HEAD} differs from the "
            "embedding; set tie_word_embeddings to false if the head was trained on its own"
        )


def _same(leaf: np.ndarray) -> np.ndarray:
    return leaf


def _to_device(leaf: np.ndarray) -> Any:
    import jax

    return jax.block_until_ready(jax.device_put(leaf))  # the host's memory is free for the next leaf
