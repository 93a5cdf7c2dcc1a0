"""Where the slots and weights of a `SlotEngine` are, and the numbers of slots that it uses there."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prm_jax.models import ModelConfig
from prm_jax.models.generation import on_cpu
from prm_jax.models.sharding import BATCH, RULES, rows_over, shard_params

if TYPE_CHECKING:
    from jax.sharding import Mesh


def mesh_of(params: Any) -> "Mesh | None":
    """The mesh over which parameters are sharded; None on one device."""
    placed = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return placed.mesh if isinstance(placed, NamedSharding) else None  # type: ignore[return-value]


def for_decoding(params: Any, mesh: "Mesh | None") -> Any:
    """Parameters sharded over "tensor" alone: gathering them over "fsdp" would take longer than a decode step."""
    if mesh is None:
        return params
    rules = [dataclasses.replace(rule, spec=_tensor_only(rule.spec)) for rule in RULES]
    return shard_params(params, mesh, rules)


def cache_sharding(mesh: Any, config: ModelConfig) -> NamedSharding | None:
    """Slots over ``sharding.BATCH``, key-value heads over "tensor" where it divides them."""
    if mesh is None:
        return None
    tensor = "tensor" if config.num_kv_heads % mesh.shape.get("tensor", 1) == 0 else None
    return NamedSharding(mesh, PartitionSpec(tuple(a for a in BATCH if a in mesh.shape), tensor))


def compiled_sizes(slots: int, shares: Sequence[float] | None, params: Any, mesh: "Mesh | None") -> tuple[int, ...]:
    """The numbers of slots to compile, ascending: these shares of the maximum, rounded up.

    Args:
      slots: maximum.
      shares: see `SlotTuning.sizes`.
      params: on the engine's devices.
      mesh: that shares the slots, or None; sizes below the maximum are multiples of 8 and of its rows.
    """
    if shares is None:
        shares = (1.0, 0.5, 0.25, 0.125) if mesh is None and on_cpu(params) else (1.0,)
    step = int(np.lcm(8, 1 if mesh is None else rows_over(mesh)))
    sizes = {min(slots, -(-int(np.ceil(slots * share)) // step) * step) for share in shares}
    return tuple(sorted(sizes | {slots}))


def _tensor_only(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(axis if axis == "tensor" else None for axis in spec))
