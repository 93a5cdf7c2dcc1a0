"""Layers on a mesh as one ``shard_map``: every device gathers one layer's weights at a time and computes its own rows.

Fully sharded data parallelism (arXiv:1910.02054, arXiv:2304.11277).  Weights are cast before they are gathered; the
transpose of a gather is a reduce-scatter, so that gradients are never whole; no activation is gathered.  With "tensor",
heads and MLP columns are split as in ``tensor_split``; with "expert", experts are divided as in ``expert_split``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.errors import UserError
from prm_jax.models.attention_spec import SAVED
from prm_jax.models.config import ModelConfig
from prm_jax.models.expert_load import ExpertLoad
from prm_jax.models.expert_split import ExpertSplit
from prm_jax.models.gathers import Gathers
from prm_jax.models.qtensor import PARTS
from prm_jax.models.rows import row_axes
from prm_jax.models.sharding import AXES, partition_spec, rows_over, rows_shown
from prm_jax.models.tensor_split import TensorSplit
from prm_jax.pytree_paths import named_leaves

_WIDE_NORMS: dict[str, Callable[[ModelConfig], int]] = {
    "attn/q_norm/scale": lambda config: config.num_heads,
    "attn/k_norm/scale": lambda config: config.num_kv_heads,
}
"""Norms that may span all heads, and how many these are."""
_MOVES = ((1, 0), (1, 0, 2), (2, 0, 1), (1, 2, 0))
"""Permutations of the gathered weights of matrices and of experts."""

Block = Callable[..., tuple[jax.Array, ExpertLoad | None]]
"""``(config, split, experts, parameters, x, rotation, segment_ids, counted, kind) -> (x, load)`` of one layer; arrays
are one device's."""


def applies(config: ModelConfig, mesh: AbstractMesh | None, rows: int) -> bool:
    """Whether the layers of a batch run under ``shard_map``.

    Args:
      config: ``config.layers`` "constraints" never does; "auto" does where the mesh's axes divide rows and heads.
      mesh: of the parameters and rows; None on one device.
      rows: B.

    Raises:
      UserError: for ``config.layers`` "manual", with the reason, where it cannot.
    """
    if mesh is None or config.layers == "constraints":
        return False
    reason = obstacle(config, mesh, rows)
    if reason and config.layers == "manual":
        raise UserError(f"--model.layers manual: {reason}, or use --model.layers auto")
    return not reason


def run_layers(
    block: Block,
    config: ModelConfig,
    mesh: AbstractMesh,
    layers: Any,
    x: jax.Array,
    *,
    rotation: tuple[jax.Array, jax.Array],
    segment_ids: jax.Array | None = None,
    counted: jax.Array | None = None,
    kinds: jax.Array | None = None,
) -> tuple[jax.Array, ExpertLoad | None]:
    """All layers, [B, T, D] -> ([B, T, D], load); call it where ``applies``.

    Args:
      block: one layer.
      config: of the whole model; ``block`` gets one with a device's own numbers of heads and columns.
      mesh: with axes among those of ``sharding.AXES``.
      layers: stacked parameters, adapters included; receive gradients.
      x: embeddings, rows split over the axes of ``sharding.BATCH``; receives gradients.
      rotation: see ``rope.table``, with one row or B.
      segment_ids: [B, T] or None.
      counted: [B, T] bool, tokens whose experts are counted, or None.
      kinds: [L], what distinguishes layers from each other besides their parameters; or None.

    Returns:
      Rows split like those of ``x``, and tokens over "tensor" where it divides T; the experts' load in all rows, or
      None in dense models and without ``counted``.
    """
    gathers = Gathers(mesh)
    ways = mesh.shape.get("tensor", 1)
    split = TensorSplit("tensor", tokens=x.shape[1] % ways == 0) if ways > 1 else None
    experts = ExpertSplit("expert") if config.num_experts and mesh.shape.get("expert", 1) > 1 else None
    local = _local_config(config, ways)
    names = named_leaves(layers)
    specs = {name: partition_spec(f"layers/{name}", leaf.shape, mesh) for name, leaf in names.items()}
    repeated = ways > 1 and config.num_kv_heads % ways != 0
    tree = jax.tree.structure(layers)

    def whole(layer: Any) -> Any:
        leaves = []
        for (name, spec), leaf in zip(specs.items(), jax.tree.leaves(layer), strict=True):
            packed = name.rpartition("/")[2] in PARTS  # parts of quantised kernels keep their dtypes
            leaf = gathers.weights(leaf, P(*spec[1:]), leaf.dtype if packed else x.dtype)
            if repeated and _of_key_heads(name, spec):
                leaf = _own_key_head(leaf, config, ways)
            if config.family.qk_norm == "width" and ways > 1 and name in _WIDE_NORMS:
                leaf = _own_heads(leaf, _WIDE_NORMS[name](config), config, ways)
            leaves.append(leaf)
        return jax.tree.unflatten(tree, leaves)

    rows = row_axes(mesh, x.shape[0])

    def run(
        layers: Any, x: jax.Array, rotation: Any, segment_ids: Any, counted: Any, kinds: Any
    ) -> tuple[jax.Array, ExpertLoad | None]:
        def body(x: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, ExpertLoad | None]:
            params, kind = layer
            return block(local, split, experts, whole(params), x, rotation, segment_ids, counted, kind)

        body = _rematerialised(config, body, gathered=gathers.size > 1)
        x, load = jax.lax.scan(body, x, (layers, kinds), unroll=config.scan_unroll)
        return x, jax.lax.psum(load, gathers.names(rows)) if rows else load

    stream = P(rows, "tensor" if split is not None and split.tokens else None)
    given = (
        jax.tree.unflatten(tree, [gathers.spec(spec) for spec in specs.values()]),
        gathers.spec(stream),
        gathers.spec(P(rows) if rotation[0].shape[0] > 1 else P(None)),
        gathers.spec(P(rows)),
        gathers.spec(P(rows)),
        gathers.spec(P(None)),
    )
    found = (gathers.spec(stream), gathers.spec(P(None)))
    mapped = jax.shard_map(run, mesh=gathers.mesh, in_specs=given, out_specs=found, check_vma=False)
    out, load = mapped(layers, x, rotation, segment_ids, counted, kinds)
    return jax.lax.with_sharding_constraint(out, NamedSharding(mesh, stream)), load


def remat_policy(config: ModelConfig) -> Callable[..., Any] | None:
    """What the backward pass keeps for ``config.remat`` other than "none"; None: nothing but a layer's input."""
    policies = jax.checkpoint_policies
    return {
        "full": None,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "attention": policies.save_only_these_names(SAVED),
    }[config.remat]


def obstacle(config: ModelConfig, mesh: AbstractMesh, rows: int) -> str:
    """Why B rows on this mesh cannot run under ``shard_map``, with a remedy; empty where they can."""
    unknown = set(mesh.axis_names) - set(AXES)
    if unknown:
        return f"the mesh has axes {sorted(unknown)}; make it with models.make_mesh"
    ways = rows_over(mesh)
    if rows % ways:
        return f"{rows} rows cannot be split over {rows_shown(mesh)}; {ways} must divide them"
    tensor, heads, key_heads = mesh.shape.get("tensor", 1), config.num_heads, config.num_kv_heads
    if heads % tensor or (key_heads % tensor and tensor % key_heads):
        return (
            f"{heads} heads and {key_heads} key-value heads cannot be split over tensor {tensor}; choose --mesh.tensor "
            f"among {[n for n in range(1, heads + 1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0)]}"
        )
    return ""


def _local_config(config: ModelConfig, ways: int) -> ModelConfig:
    return dataclasses.replace(
        config,
        num_heads=config.num_heads // ways,
        num_kv_heads=max(config.num_kv_heads // ways, 1),
        intermediate_size=config.intermediate_size // ways,
    )


def _of_key_heads(name: str, spec: P) -> bool:
    """Whether a parameter's last dimension is that of keys or values."""
    return name.split("/")[:2] in (["attn", "k"], ["attn", "v"]) and len(spec) > 0 and spec[-1] == "tensor"


def _own_key_head(w: jax.Array, config: ModelConfig, ways: int) -> jax.Array:
    """Of a kernel's or bias's columns, those of the one key head that this device's query heads read."""
    w = jax.lax.all_gather(w, "tensor", axis=w.ndim - 1, tiled=True)
    head = jax.lax.axis_index("tensor") * config.num_kv_heads // ways
    return jax.lax.dynamic_slice_in_dim(w, head * config.head_dim, config.head_dim, axis=w.ndim - 1)


def _own_heads(scale: jax.Array, heads: int, config: ModelConfig, ways: int) -> jax.Array:
    """Of a norm's scale over all heads, the part of this device's heads; key heads may be fewer than devices."""
    first = jax.lax.axis_index("tensor") * heads // ways
    size = max(heads // ways, 1) * config.head_dim
    return jax.lax.dynamic_slice_in_dim(scale, first * config.head_dim, size)


def _rematerialised(config: ModelConfig, body: Callable[..., Any], *, gathered: bool) -> Callable[..., Any]:
    """``body`` under the config's policy; gathered weights are gathered again instead of being kept."""
    if config.remat == "none" and not gathered:
        return body
    policy = _all_but_gathered_weights if config.remat == "none" else remat_policy(config)
    # Inside a loop, XLA cannot merge the recomputation with the first computation.
    return jax.checkpoint(body, policy=policy, prevent_cse=config.scan_unroll >= config.num_layers)


def _all_but_gathered_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether a value may be kept: not the steps of ``Gathers.weights``, to which transposes of matrices belong."""
    if primitive.name == "all_gather":
        return "tensor" in params["axis_name"]
    return params.get("permutation") not in _MOVES
