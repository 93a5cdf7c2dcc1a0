"""Meshes and shardings: axes, and rules from a parameter's path to its sharding.

"data" splits the batch only, "fsdp" splits the batch and the parameters (arXiv 2004.13336, 2304.11277), "tensor"
splits heads and MLP widths (arXiv 1909.08053), and "expert", which a mesh has where it is asked for, splits the batch
and the experts of sparse models (arXiv 2006.16668). The axes are of type Auto: the compiler inserts the communication,
and any program that is right on one device is right on a mesh.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from prm_jax.errors import UserError
from prm_jax.pytree_paths import is_key, named_leaves

PyTree = Any
AnyMesh = Mesh | AbstractMesh
AXES = ("data", "fsdp", "expert", "tensor")
"""The axes that a mesh may have, in their order."""
BATCH = ("data", "fsdp", "expert")
"""Those that split a batch."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The sharding of parameters with a given path.

    Attributes:
      path: regular expression for the end of a path, "attn/q/kernel"; matches whole names only.
      spec: mesh axes by dimension.
      strict: raise an error if an axis does not divide its dimension; otherwise the dimension is not split.
    """

    path: str
    spec: PartitionSpec
    strict: bool = True


P = PartitionSpec
_IN, _OUT = r"(attn/[qkv]|mlp/(gate|up))", r"(attn/o|mlp/down)"
RULES = (
    # Vocabulary sizes are arbitrary; one that the axis does not divide is replicated.
    Rule(r"embed/embedding", P("tensor", "fsdp"), strict=False),
    Rule(r"head/kernel", P("tensor", "fsdp"), strict=False),
    # Layers are stacked on axis 0, which a scan runs over and no axis splits.
    Rule(rf"{_IN}/kernel", P(None, "fsdp", "tensor")),
    Rule(rf"{_IN}/bias", P(None, "tensor")),
    Rule(rf"{_IN}/lora_a", P(None, "fsdp", None)),
    Rule(rf"{_IN}/lora_b", P(None, None, "tensor")),
    Rule(rf"{_OUT}/kernel", P(None, "tensor", "fsdp")),
    # Experts, stacked on axis 1: "expert" divides them, "tensor" splits the columns of each.
    Rule(r"mlp/(gate|up)/kernel", P(None, "expert", "fsdp", "tensor")),
    Rule(r"mlp/down/kernel", P(None, "expert", "tensor", "fsdp")),
    Rule(rf"{_OUT}/lora_a", P(None, "tensor", None)),
    # Quantised kernels: scales are divided like the kernels, which needs whole groups on every device.
    Rule(rf"{_IN}/kernel/(values|scales|zeros|coarse|lows)", P(None, "fsdp", "tensor")),
    Rule(rf"{_OUT}/kernel/(values|scales|zeros|coarse|lows)", P(None, "tensor", "fsdp")),
    Rule(r"mlp/(gate|up)/kernel/(values|scales|zeros|coarse|lows)", P(None, "expert", "fsdp", "tensor")),
    Rule(r"mlp/down/kernel/(values|scales|zeros|coarse|lows)", P(None, "expert", "tensor", "fsdp")),
    Rule(rf"{_IN}/kernel/left", P(None, "fsdp", None)),
    Rule(rf"{_IN}/kernel/right", P(None, None, "tensor")),
    Rule(rf"{_OUT}/kernel/left", P(None, "tensor", None)),
    Rule(rf"{_OUT}/kernel/right", P(None, None, "fsdp")),
    Rule(r"(embed/embedding|head/kernel)/values", P("tensor", "fsdp"), strict=False),
    Rule(r"(embed/embedding|head/kernel)/scales", P("tensor", None), strict=False),
    Rule(rf"{_OUT}/lora_b", P(None, None, "fsdp")),
)
"""The parameter tree of prm_jax.models; leaves without a rule (norms, output biases, heads) are replicated."""


def axis_sizes(data: int, fsdp: int, tensor: int, expert: int = 1) -> dict[str, int]:
    """The axes of a mesh with their sizes, in order; "expert" only where it is not 1."""
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    return {name: size for name, size in sizes.items() if name != "expert" or size != 1}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, expert: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Makes a mesh with the axes "data", "fsdp" and "tensor", and "expert" where it is not 1.

    Args:
      data: devices along "data".
      fsdp: along "fsdp".
      tensor: along "tensor".
      expert: along "expert". One of the four may be -1: all remaining devices.
      devices: default all of them, of all processes. The first data * fsdp * tensor * expert are used.

    Raises:
      UserError: sizes that are not positive, more than one -1, or that do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(data, fsdp, tensor, expert)
    asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh sizes must be positive, and at most one -1 (all remaining devices); found {asked}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if known > len(devices):
        raise UserError(f"a mesh of {asked} needs {known} devices; there are {len(devices)}")
    if -1 in sizes.values():
        if len(devices) % known:
            raise UserError(
                f"{len(devices)} devices cannot be split evenly for a mesh of {asked}: {known} must divide them"
            )
        sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    used = devices[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=used)


def check_expert_axis(mesh: AnyMesh | None, experts: int, architecture: str) -> None:
    """Refuses an "expert" axis for a dense model.

    Raises:
      UserError: the model has no experts.
    """
    if mesh is not None and mesh.shape.get("expert", 1) > 1 and not experts:
        raise UserError(
            f"--mesh.expert {mesh.shape['expert']} divides experts, and a model of architecture {architecture!r} has "
            "none: use --mesh.data or --mesh.fsdp"
        )


def check_spans_processes(mesh: Mesh) -> None:
    """Checks that a mesh uses all devices of all processes of the run, so that none of them is idle or left out.

    Raises:
      UserError: it does not.
    """
    processes, devices = jax.process_count(), jax.device_count()
    if processes > 1 and mesh.size != devices:
        sizes = ", ".join(f"--mesh.{name} {size}" for name, size in mesh.shape.items())
        raise UserError(
            f"{processes} processes with {devices} devices run together, but {sizes} uses {mesh.size} of them: the "
            f"product must be {devices}. Give one of them as -1 (all remaining devices), such as --mesh.fsdp -1"
        )


def partition_spec(name: str, shape: Sequence[int], mesh: AnyMesh, rules: Sequence[Rule] = RULES) -> PartitionSpec:
    """The spec of the first rule that matches a leaf, or an empty one (replicated).

    Paths in an optimiser's state end in those of its parameters ("0/mu/layers/attn/q/kernel"), so the same rules
    apply; a leaf with another number of dimensions than the rule's (a factored moment) is replicated.

    Args:
      name: the leaf's path, as ``named_leaves`` gives it.
      shape: its shape.
      mesh: the mesh; rules may name axes that it does not have.
      rules: tried in order.

    Raises:
      UserError: an axis does not divide the dimension that it should split.
    """
    for rule in rules:
        if not re.search(rf"(^|/){rule.path}$", name) or len(rule.spec) != len(shape):
            continue
        axes = [_axis(rule, name, axis, size, mesh) for axis, size in zip(rule.spec, shape, strict=True)]
        return PartitionSpec(*axes)
    return PartitionSpec()


def placed_shapes(shapes: PyTree, shardings: PyTree | None) -> PyTree:
    """Abstract arrays with their places on a mesh, for restoring a checkpoint straight to the devices.

    Args:
      shapes: pytree of ``jax.ShapeDtypeStruct``.
      shardings: pytree of shardings, leaf by leaf; None on one device, which leaves the shapes as they are.
    """
    if shardings is None:
        return shapes
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def shardings_for(tree: PyTree, mesh: Mesh, rules: Sequence[Rule] = RULES) -> PyTree:
    """The NamedSharding of every leaf: of parameters, of an optimiser's state, or of both in one state.

    Args:
      tree: pytree of arrays or ``jax.ShapeDtypeStruct``.
      mesh: from ``make_mesh``.
      rules: see ``partition_spec``.

    Raises:
      UserError: see ``partition_spec``.
    """
    leaves = named_leaves(tree)
    shardings = [NamedSharding(mesh, partition_spec(name, leaf.shape, mesh, rules)) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), shardings)


def shard_params(params: PyTree, mesh: Mesh, rules: Sequence[Rule] = RULES) -> PyTree:
    """Places parameters (or an optimiser's state) on the mesh.

    Args:
      params: pytree of arrays (typed keys included), on the host, on a device or on a mesh; with several processes the
        same in each.
      mesh: from ``make_mesh``.
      rules: see ``partition_spec``.

    Raises:
      UserError: see ``partition_spec``.
    """
    shardings = shardings_for(params, mesh, rules)
    if jax.process_count() == 1:
        return jax.device_put(params, shardings)
    return jax.tree.map(place, params, shardings)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Rows, dimension `axis` of an array, split over the axes of `BATCH`; other dimensions not split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, tuple(name for name in BATCH if name in mesh.shape)))


def rows_over(mesh: AnyMesh) -> int:
    """Devices over which a batch's rows are split."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def rows_shown(mesh: AnyMesh) -> str:
    """The axes that split a batch with their sizes, for messages: "data 2 x fsdp 4"."""
    return " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH if axis in mesh.shape)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places a batch on the mesh, with its rows split.

    Args:
      batch: pytree of arrays with one leading dimension of rows; in a run of several processes each holds all rows, and
        copies those of its own devices.
      mesh: from ``make_mesh``.

    Raises:
      UserError: the rows cannot be split evenly.
    """
    sharding = batch_sharding(mesh)
    ways = rows_over(mesh)
    for name, leaf in named_leaves(batch).items():
        rows = leaf.shape[0]
        if rows % ways:
            raise UserError(
                f"{rows} rows of {name} cannot be split over {ways} devices ({rows_shown(mesh)}): choose a batch that "
                f"{ways} divides"
            )
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: place(x, sharding), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """``device_put`` of one array for shardings that include other processes' devices.

    Args:
      leaf: an array that every process holds as a whole, or one that spans processes (then the call is collective).
      sharding: of the result.
    """
    if is_key(leaf):
        return jax.random.wrap_key_data(place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _axis(rule: Rule, name: str, axis: str | None, size: int, mesh: AnyMesh) -> str | None:
    if axis is None or axis not in mesh.shape or size == 1:  # such as an optimiser's scales, one per row
        return None
    ways = mesh.shape[axis]
    if size % ways == 0:
        return axis if ways > 1 else None
    if rule.strict:
        raise UserError(
            f"the mesh axis {axis!r} of size {ways} does not divide dimension {size} of the parameter {name}"
        )
    return None
