"""Writes weights as GGUF files, in the form of an existing file of the same model."""

import dataclasses
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

import numpy as np

from prm_jax.errors import UserError, require
from prm_jax.models.checkpoint_layout import check_params, slots
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import beside, sync_directory
from prm_jax.models.gguf import GgufFile, read_gguf, read_raw_metadata
from prm_jax.models.gguf_blocks import BLOCK, KINDS
from prm_jax.models.gguf_names import gguf_name
from prm_jax.models.gguf_weights import GgufWeights, rows_for_gguf

_FILE_TYPE = "general.file_type"
_ALIGNMENT = 32
_TABLES = ("token_embd.weight", "output.weight")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A tensor type: GGML's number of it and of files of mostly that type, and its dtype; None for blocks."""

    number: int
    file: int
    dtype: np.dtype | None = None

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor."""
        count = math.prod(shape)
        return count // BLOCK * KINDS[self.number].nbytes if self.dtype is None else count * self.dtype.itemsize

    def encode(self, array: np.ndarray) -> np.ndarray:
        """The tensor as it is stored."""
        if self.dtype is not None:
            return np.ascontiguousarray(array, self.dtype)
        gguf = require("gguf", "gguf")
        wide = np.ascontiguousarray(array, np.float32)
        encoded: np.ndarray = gguf.quants.quantize(wide, gguf.GGMLQuantizationType(self.number))
        return encoded


_KINDS = {
    "float32": _Kind(0, 0, np.dtype("<f4")), "float16": _Kind(1, 1, np.dtype("<f2")), "q8_0": _Kind(8, 7),
    "q4_0": _Kind(2, 2),
}  # fmt: skip


def save_gguf(
    path: str | pathlib.Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    like: str | pathlib.Path,
    dtype: Literal["float32", "float16", "q8_0", "q4_0"] = "float16",
) -> None:
    """Writes a GGUF file that llama.cpp and ``load_weights`` read.

    Metadata (tokenizer, chat template, hyperparameters) are those of `like`; the numbers are those of `params`. The
    file is written under a temporary name and then renamed.

    Args:
      path: the file to write; an existing one is replaced.
      config: the model.
      params: its parameters, arrays of NumPy or JAX; with adapters merged.
      like: a GGUF file of the same architecture and sizes, quantised or not.
      dtype: of matrices; vectors are float32. q8_0 and q4_0 are llama.cpp's blocks of 32 inputs in 8 and 4 bits,
        rounded like its reference implementation; with q4_0, embedding and head have 8 bits.

    Raises:
      UserError: `like` is another model, the parameters do not fit the config, blocks do not divide a matrix, or a
        write fails.
    """
    path = pathlib.Path(path)
    template = read_gguf(like)
    _check_same(config, GgufWeights(template), template)
    found = check_params(config, params)
    names = {gguf_name(config.family, name): name for slot in slots(config) for name in slot.names}
    kinds = {name: _kind(name, info.shape, dtype) for name, info in template.tensors.items()}
    metadata = read_raw_metadata(like)
    metadata.pop("general.alignment", None)
    if _FILE_TYPE in metadata:
        metadata[_FILE_TYPE] = _entry(_FILE_TYPE, 4, struct.pack("<I", _KINDS[dtype].file))
    new = beside(path, "new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(new, "xb") as file:
                _write_header(file, metadata, template, kinds)
                for name, array in _arrays(config, found, template, names):
                    data = kinds[name].encode(array)
                    file.write(data.data)
                    file.write(bytes(-data.nbytes % _ALIGNMENT))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
            sync_directory(path.parent)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _check_same(config: ModelConfig, weights: GgufWeights, file: GgufFile) -> None:
    """Refuses a template whose model computes something else; how numbers are stored may differ."""
    same = (
        "architecture", "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
        "head_dim", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "out_bias",
        "mlp_bias", "qk_norm", "windows", "rotations", "score_scale", "attn_softcap", "logit_softcap", "embed_scale",
        "residual_scale", "logit_divisor", "rope_local_theta",
    )  # fmt: skip
    if config.family.fused or config.num_experts:
        raise UserError(f"GGUF files of {config.architecture} models are read and not written; use save_weights")
    for name in same:
        own, theirs = getattr(config, name), getattr(weights.config, name)
        if own != theirs:
            raise UserError(f"{file.path} is another model: its {name} is {theirs}, the parameters' {own}")


def _kind(name: str, shape: tuple[int, ...], dtype: str) -> _Kind:
    if len(shape) < 2:
        return _KINDS["float32"]
    if _KINDS[dtype].dtype is None and shape[-1] % BLOCK:
        raise UserError(
            f"{dtype} has blocks of {BLOCK} inputs, which do not divide the {shape[-1]} of {name}: write float16"
        )
    return _KINDS["q8_0" if dtype == "q4_0" and name in _TABLES else dtype]


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key.encode())) + key.encode() + struct.pack("<I", kind) + value


def _write_header(
    file: BinaryIO, metadata: Mapping[str, bytes], template: GgufFile, kinds: Mapping[str, _Kind]
) -> None:
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(template.tensors), len(metadata)))
    for entry in metadata.values():
        file.write(entry)
    offset = 0
    for name in template.tensors:
        shape = template.tensors[name].shape
        spelled = name.encode()
        file.write(struct.pack("<Q", len(spelled)) + spelled + struct.pack("<I", len(shape)))
        file.write(struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kinds[name].number, offset))
        size = kinds[name].size(shape)
        offset += size + -size % _ALIGNMENT
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _arrays(
    config: ModelConfig, found: Mapping[tuple[str, ...], Any], template: GgufFile, names: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in the template's order; what is not a parameter (rotary factors) is copied from it."""
    by_name = {name: (slot, i) for slot in slots(config) for i, name in enumerate(slot.names)}
    held: dict[tuple[str, ...], np.ndarray] = {}
    for own in template.tensors:
        if own not in names:
            yield own, template.read(own)
            continue
        slot, layer = by_name[names[own]]
        if slot.path not in held:
            held[slot.path] = np.asarray(found[slot.path])
        leaf = held[slot.path]
        part = leaf[slot.places[layer]]
        yield own, rows_for_gguf(config, names[own], part.T if slot.transposed else part)
