"""Directories of quantised parameters: the arrays as they are, and the form of each matrix in ``config.json``."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.checkpoint_layout import slots
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import read_json
from prm_jax.models.qtensor import PARTS, QTensor
from prm_jax.models.safetensors_files import Shards

METHOD = "prm_jax"
KEY = "quantization_config"
_FORMAT = 1
_FORM = ("bits", "grid", "block", "padding")
"""The fields of a `QTensor` that are not arrays."""


def is_described(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of quantised parameters in this format."""
    described = config.get(KEY)
    return isinstance(described, Mapping) and described.get("quant_method") == METHOD


def describe(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The entry of ``config.json``: dtype of the plain parameters, and the form of every quantised matrix by name."""
    forms = {
        name: {field: getattr(leaf, field) for field in _FORM}
        for name, leaf in _leaves(params)
        if isinstance(leaf, QTensor)
    }
    return {"quant_method": METHOD, "format": _FORMAT, "dtype": dtype, "matrices": forms}


def arrays(params: Mapping[str, Any]) -> dict[str, Any]:
    """Every array by name; a part of a quantised matrix has the matrix's name and its own.

    Raises:
      UserError: adapters, which train and are saved apart.
    """
    found: dict[str, Any] = {}
    for name, leaf in _leaves(params):
        if name.endswith(("lora_a", "lora_b")):
            raise UserError("adapters on quantised weights are saved with save_adapter, or merged with models.merge")
        if isinstance(leaf, QTensor):
            found |= {f"{name}.{part}": getattr(leaf, part) for part in PARTS if getattr(leaf, part) is not None}
        else:
            found[name] = leaf
    return found


def blocks(params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays one by one on the host, in the order of `arrays`."""
    for name, array in arrays(params).items():
        yield name, np.ascontiguousarray(np.asarray(array))


def load_quantized(path: pathlib.Path, dtype: str | None = None) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads what ``save_weights`` wrote of quantised parameters; leaves are NumPy arrays.

    Args:
      path: the directory.
      dtype: of the parameters that are not quantised; None: as stored.

    Raises:
      UserError: another format, or tensors that are missing, unknown or misshapen.
    """
    described = read_json(path / "config.json")
    entry = described[KEY]
    if entry.get("format") != _FORMAT:
        raise UserError(f"{path}: {KEY} has format {entry.get('format')!r}; this version reads format {_FORMAT}")
    config = ModelConfig.from_hf({key: value for key, value in described.items() if key != KEY})
    source = Shards(path, plain_names=False)
    dtype = dtype or str(entry.get("dtype", "float32"))
    forms, left = entry.get("matrices", {}), set(source.shapes)
    params: dict[str, Any] = {}
    for slot in slots(config):
        name = ".".join(slot.path)
        names = [f"{name}.{part}" for part in PARTS] if name in forms else [name]
        found = {one: source.read(one) for one in names if one in left}
        left -= set(found)
        node = params
        for key in slot.path[:-1]:
            node = node.setdefault(key, {})
        leaf = node[slot.path[-1]] = _leaf(name, found, forms.get(name), jnp.dtype(dtype))
        if leaf is None or tuple(leaf.shape) != slot.leaf_shape:
            shape = None if leaf is None else list(leaf.shape)
            raise UserError(f"{path}: {name} should have shape {list(slot.leaf_shape)}, found {shape}")
    if left:
        raise UserError(f"{path}: {sorted(left)[0]} is not a tensor of this model")
    return dataclasses.replace(config, dtype=dtype), params  # type: ignore[arg-type]


def _leaf(name: str, found: Mapping[str, np.ndarray], form: Mapping[str, Any] | None, dtype: np.dtype) -> Any:
    if form is None:
        return found[name].astype(dtype) if name in found else None
    parts: dict[str, Any] = {part: found.get(f"{name}.{part}") for part in PARTS}
    if parts["values"] is None or parts["scales"] is None:
        return None
    return QTensor(**parts, **{field: form[field] for field in _FORM})


def _leaves(params: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, leaf) with quantised matrices whole."""
    flat = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]
