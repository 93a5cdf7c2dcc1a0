"""Which tensor of a Hugging Face checkpoint is which leaf of the parameter tree."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import short

Params = dict[str, Any]
# Buffers of old exports, which the configuration determines.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
TIED_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Slot:
    """A leaf of the parameter tree, and the tensor, or tensors (one per layer), that it is stored as.

    Attributes:
      path: keys to the leaf in the parameter tree.
      name: of the tensor; ``{}`` stands for the layer.
      shape: of one tensor in the file; leaves of the layers have an additional leading axis L.
      transposed: the leaf holds ``[in, out]`` kernels, the file ``[out, in]``.
      layers: L, or 0 for a leaf outside the layers.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    layers: int = 0

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the order of the leading axis."""
        return [self.name.format(i) for i in range(self.layers)] if self.layers else [self.name]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape of the leaf."""
        shape = self.shape[::-1] if self.transposed else self.shape
        return (self.layers, *shape) if self.layers else shape


def slots(config: ModelConfig) -> list[Slot]:
    """Every leaf of the model's parameters, in the order in which they are used."""
    width, heads, groups = config.hidden_size, config.num_heads, config.num_kv_heads
    inner = config.intermediate_size
    head_out, group_out = heads * config.head_dim, groups * config.head_dim
    embedding = (config.vocab_size, width)
    attention = {
        "q": (head_out, width),
        "k": (group_out, width),
        "v": (group_out, width),
        "o": (width, head_out),
    }
    mlp = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    found = [Slot(("embed", "embedding"), "model.embed_tokens.weight", embedding)]

    def layer(path: tuple[str, ...], name: str, shape: tuple[int, ...], *, transposed: bool = False) -> None:
        found.append(Slot(("layers", *path), f"model.layers.{{}}.{name}", shape, transposed, config.num_layers))

    layer(("attn_norm", "scale"), "input_layernorm.weight", (width,))
    for key, shape in attention.items():
        layer(("attn", key, "kernel"), f"self_attn.{key}_proj.weight", shape, transposed=True)
        if config.out_bias if key == "o" else config.attention_bias:
            layer(("attn", key, "bias"), f"self_attn.{key}_proj.bias", shape[:1])
    for key in ("q", "k") if config.qk_norm else ():
        layer(("attn", f"{key}_norm", "scale"), f"self_attn.{key}_norm.weight", (config.head_dim,))
    layer(("mlp_norm", "scale"), "post_attention_layernorm.weight", (width,))
    for key, shape in mlp.items():
        layer(("mlp", key, "kernel"), f"mlp.{key}_proj.weight", shape, transposed=True)
        if config.mlp_bias:
            layer(("mlp", key, "bias"), f"mlp.{key}_proj.bias", shape[:1])
    found.append(Slot(("final_norm", "scale"), "model.norm.weight", (width,)))
    if not config.tie_word_embeddings:
        found.append(Slot(("head", "kernel"), TIED_HEAD, embedding))
    return found


def check_tensors(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    spell: Callable[[str], str] = str,
) -> None:
    """Checks that a file has exactly the tensors of the model, with their shapes.

    Args:
      config: the model.
      shapes: of the file's tensors, by their Hugging Face names.
      source: the file's name, for errors.
      spell: from a Hugging Face name to what the file calls it, for errors.

    Raises:
      UserError: naming the first five that are missing, misshapen, or unknown.
    """
    if config.num_layers > len(shapes):  # before names are made for an absurd number of layers
        raise UserError(f"{source}: its config says {config.num_layers} layers, but it has only {len(shapes)} tensors")
    adapted = [name for name in shapes if ".lora_" in name or ".base_layer." in name]
    if adapted:
        raise UserError(
            f"{source} holds LoRA adapters that were not merged ({first(adapted, 1)}); save it with PEFT's "
            "merge_and_unload(), or save the adapter alone and load its directory"
        )
    expected = {name: slot.shape for slot in slots(config) for name in slot.names}
    wrong = [f"{spell(name)} is missing" for name in expected if name not in shapes]
    wrong += [
        f"{spell(name)} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    wrong += [
        f"{spell(name)} is not a tensor of this model"
        for name in shapes
        if name not in expected and not name.endswith(_IGNORED_SUFFIXES) and name != TIED_HEAD
    ]
    if wrong:
        raise UserError(f"{source} does not match the {config.architecture} model of its config: {first(wrong)}")


def assemble(
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    *,
    dtype: np.dtype,
    place: Callable[[np.ndarray], Any],
) -> Params:
    """Builds the parameter tree leaf by leaf.

    Args:
      config: the model.
      read: from a tensor's Hugging Face name to its numbers.
      dtype: of the leaves.
      place: receives each finished leaf, for example to transfer it to a device; besides its results, one leaf and
        one tensor are held in memory at a time.

    Returns:
      The parameters.
    """
    params: Params = {}
    for slot in slots(config):
        leaf = np.empty(slot.leaf_shape, dtype)
        rows: Iterable[np.ndarray] = leaf if slot.layers else (leaf,)
        for row, name in zip(rows, slot.names, strict=True):
            tensor = read(name)
            copy_into(row, tensor.T if slot.transposed else tensor)
        node = params
        for key in slot.path[:-1]:
            node = node.setdefault(key, {})
        node[slot.path[-1]] = place(leaf)
    return params


def leaves(params: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The leaves of a parameter tree, by path."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            found |= {(key, *path): leaf for path, leaf in leaves(value).items()}
        else:
            found[(key,)] = value
    return found


def check_params(config: ModelConfig, params: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Checks that a parameter tree is that of a plain model, and returns its leaves by path.

    Raises:
      UserError: for adapters that are not merged, unstacked layers, and leaves that are missing, misshapen or
        unknown (naming the first five).
    """
    if isinstance(params.get("layers"), tuple | list):
        raise UserError("the layers of the parameters are unstacked; save the stacked tree instead")
    found = leaves(params)
    if any(path[-1] in ("lora_a", "lora_b") for path in found):
        raise UserError(
            "the parameters contain LoRA adapters, which this file format cannot hold; merge them first: "
            "save_weights(path, config, prm_jax.models.merge(config, params))"
        )
    expected = {slot.path: slot.leaf_shape for slot in slots(config)}
    wrong = [f"{'.'.join(path)} is missing" for path in expected if path not in found]
    wrong += [
        f"{'.'.join(path)} has shape {list(found[path].shape)}, expected {list(shape)}"
        for path, shape in expected.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    wrong += [f"{'.'.join(path)} is not a leaf of this model" for path in found if path not in expected]
    if wrong:
        raise UserError(f"the parameters are not those of the given config: {first(wrong)}")
    return found


def first(items: list[str], count: int = 5) -> str:
    """The first few of a list as one line, each cut to a readable length."""
    more = f"; and {len(items) - count} more" if len(items) > count else ""
    return "; ".join(short(item) for item in items[:count]) + more


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copies an array into another of the same shape, converting its dtype."""
    if source.dtype == target.dtype and source.itemsize == 2:
        # NumPy copies dtypes that it does not know (bfloat16) one element at a time.
        source, target = source.view(np.uint16), target.view(np.uint16)
    target[...] = source
