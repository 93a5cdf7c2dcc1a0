"""Which tensor of a Hugging Face checkpoint is which leaf of the parameter tree."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import short
from prm_jax.models.tensor_file import Index

Params = dict[str, Any]
# Buffers of old exports, which the configuration determines.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
TIED_HEAD = "lm_head.weight"


class ReadPart(Protocol):
    """From a tensor's Hugging Face name and slices of its leading dimensions to the numbers of that part."""

    def __call__(self, name: str, index: Index | None = None, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Slot:
    """A leaf of the parameter tree, and the tensors that it is stored as: one, one per layer, or one per expert.

    Attributes:
      path: keys to the leaf in the parameter tree.
      name: of the tensor; ``{}`` stands for the layer, a second one for the expert.
      shape: of one tensor in the file, or of the leaf's part of it.
      transposed: the leaf holds ``[in, out]`` kernels, the file ``[out, in]``.
      stack: leading axes of the leaf: (), (L,) or (L, E).
      first_row: of the leaf's part of a tensor that holds several leaves.
      rows: of that tensor; None where the leaf is all of it.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    stack: tuple[int, ...] = ()
    first_row: int = 0
    rows: int | None = None

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the order of the leading axes."""
        return [self.name.format(*index) for index in self.places]

    @property
    def places(self) -> list[tuple[int, ...]]:
        """Each tensor's place in the leading axes."""
        return list(np.ndindex(self.stack))

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of one tensor in the file."""
        return self.shape if self.rows is None else (self.rows, *self.shape[1:])

    def index(self, *sides: slice) -> tuple[slice, ...]:
        """Where the given rows and columns of the leaf's part are in the tensor."""
        rows, *rest = sides or (slice(0, self.shape[0]),)
        return (slice(rows.start + self.first_row, rows.stop + self.first_row), *rest)

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape of the leaf."""
        shape = self.shape[::-1] if self.transposed else self.shape
        return (*self.stack, *shape)


def slots(config: ModelConfig) -> list[Slot]:
    """Every leaf of the model's parameters, in the order in which they are used."""
    width, embedding = config.hidden_size, (config.vocab_size, config.hidden_size)
    norms = config.family.norms

    def norm(name: str) -> list[Slot]:
        return [_in_layers(config, (name, "scale"), f"{norms[name]}.weight", (width,))] if name in norms else []

    found = [Slot(("embed", "embedding"), "model.embed_tokens.weight", embedding)]
    found += norm("attn_norm") + _attention(config) + norm("attn_post_norm")
    found += norm("mlp_norm") + (_experts(config) if config.num_experts else _mlp(config)) + norm("mlp_post_norm")
    found.append(Slot(("final_norm", "scale"), "model.norm.weight", (width,)))
    if not config.tie_word_embeddings:
        found.append(Slot(("head", "kernel"), TIED_HEAD, embedding))
    return found


def _in_layers(
    config: ModelConfig, path: tuple[str, ...], name: str, shape: tuple[int, ...], **more: Any
) -> Slot:
    return Slot(("layers", *path), f"model.layers.{{}}.{name}", shape, **{"stack": (config.num_layers,), **more})


def _attention(config: ModelConfig) -> list[Slot]:
    width = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    found = []
    for key, shape in shapes.items():
        found.append(_kernel(config, "attn", key, f"self_attn.{key}_proj", shapes))
        if config.out_bias if key == "o" else config.attention_bias:
            found.append(_in_layers(config, ("attn", key, "bias"), f"self_attn.{key}_proj.bias", shape[:1]))
    spans = {"head": (config.head_dim, config.head_dim), "width": (queries, keys), None: ()}[config.family.qk_norm]
    for key, span in zip("qk", spans, strict=False):
        found.append(_in_layers(config, ("attn", f"{key}_norm", "scale"), f"self_attn.{key}_norm.weight", (span,)))
    return found


def _mlp(config: ModelConfig) -> list[Slot]:
    shapes = _mlp_shapes(config)
    found = []
    for key, shape in shapes.items():
        found.append(_kernel(config, "mlp", key, f"mlp.{key}_proj", shapes))
        if config.mlp_bias:
            found.append(_in_layers(config, ("mlp", key, "bias"), f"mlp.{key}_proj.bias", shape[:1]))
    return found


def _mlp_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    width, inner = config.hidden_size, config.intermediate_size
    return {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}


def _kernel(
    config: ModelConfig, block: str, key: str, name: str, shapes: Mapping[str, tuple[int, int]]
) -> Slot:
    """A projection: a tensor of its own, or rows of one that the family fuses."""
    for fused, parts in config.family.fused.items():
        if key in parts:
            sizes = [shapes[part][0] for part in parts]
            place = parts.index(key)
            return _in_layers(
                config, (block, key, "kernel"), f"{fused}.weight", shapes[key], transposed=True,
                first_row=sum(sizes[:place]), rows=sum(sizes),
            )  # fmt: skip
    return _in_layers(config, (block, key, "kernel"), f"{name}.weight", shapes[key], transposed=True)


def _experts(config: ModelConfig) -> list[Slot]:
    names, stack = config.family.experts, (config.num_layers, config.num_experts)
    assert names is not None
    router = (config.num_experts, config.hidden_size)
    found = [_in_layers(config, ("mlp", "router", "kernel"), f"{names.router}.weight", router, transposed=True)]
    for key, shape in _mlp_shapes(config).items():
        name = f"{getattr(names, key)}.weight"
        found.append(_in_layers(config, ("mlp", key, "kernel"), name, shape, transposed=True, stack=stack))
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
    expected = {name: slot.tensor_shape for slot in slots(config) for name in slot.names}
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
    read: ReadPart,
    *,
    dtype: np.dtype,
    place: Callable[[np.ndarray], Any],
    leaf_of: Callable[[Slot], Any] = lambda slot: None,
) -> Params:
    """Builds the parameter tree leaf by leaf.

    Args:
      config: the model.
      read: reads tensors, or parts of them.
      dtype: of the leaves.
      place: receives each finished leaf, for example to transfer it to a device; besides its results, one leaf and
        one tensor are held in memory at a time.
      leaf_of: a leaf in another form, which is not placed; None for one to be assembled.

    Returns:
      The parameters.
    """
    params: Params = {}
    for slot in slots(config):
        node = params
        for key in slot.path[:-1]:
            node = node.setdefault(key, {})
        given = leaf_of(slot)
        node[slot.path[-1]] = place(_assembled(slot, read, dtype)) if given is None else given
    return params


def _assembled(slot: Slot, read: ReadPart, dtype: np.dtype) -> np.ndarray:
    leaf = np.empty(slot.leaf_shape, dtype)
    for place_in_leaf, name in zip(slot.places, slot.names, strict=True):
        tensor = read(name) if slot.rows is None else read(name, slot.index())
        copy_into(leaf[place_in_leaf], tensor.T if slot.transposed else tensor)
    return leaf


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
