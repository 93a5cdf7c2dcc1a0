"""Sparse mixtures of experts without dropped tokens: every token is processed by exactly its k experts.

Nothing depends on the other tokens of a batch, so that policy, reward model and reference agree exactly.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prm_jax.models.config import ModelConfig
from prm_jax.models.expert_load import ExpertLoad, Routing
from prm_jax.models.expert_split import ExpertSplit
from prm_jax.models.qtensor import QTensor
from prm_jax.models.quantized_product import product
from prm_jax.models.tensor_split import TensorSplit
from prm_jax.target_device import platform_and_kind
from prm_jax.varying import mark, varying_axes

_MOST_ROWS = 128
"""Rows of one expert that are multiplied at once, at most, where groups are cut into blocks."""


def route(config: ModelConfig, router: jax.Array, x: jax.Array) -> Routing:
    """The k most probable experts of each token; with ``config.norm_topk``, their weights are scaled to sum to 1.

    Args:
      config: gives k.
      router: [D, E]; receives gradients through the weights.
      x: [N, D], any float dtype; products are summed in float32.
    """
    logits = jnp.dot(x, router.astype(x.dtype), preferred_element_type=jnp.float32)
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, experts = jax.lax.top_k(probabilities, config.experts_per_token)
    if config.norm_topk:
        weights = weights / weights.sum(-1, keepdims=True)
    return Routing(experts, weights, probabilities)


def mix_experts(
    config: ModelConfig, kernels: dict[str, Any], routing: Routing, x: jax.Array, *, first: jax.Array | None = None
) -> jax.Array:
    """Weighted sum of the outputs of each token's experts, [N, D] -> [N, D].

    Args:
      config: gives the activation.
      kernels: "gate" and "up" [E, D, F], "down" [E, F, D]; receive gradients.
      routing: of the N tokens; its weights receive gradients.
      x: [N, D]; receives gradients.
      first: [] i32, where ``kernels`` are of some consecutive experts alone: the first one. What other experts add is
        left out.
    """
    tokens, count = routing.experts.shape
    here, flat = kernels["gate"].shape[0], routing.experts.reshape(-1)
    if first is not None:  # the last group is of tokens whose expert is elsewhere
        flat = jnp.where((flat >= first) & (flat < first + here), flat - first, here)
    order = jnp.argsort(flat, stable=True)
    blocked = platform_and_kind(x)[0] == "cpu" or isinstance(kernels["gate"], QTensor)
    groups = Groups.of(flat[order], here, blocked=blocked)
    rows = x[order // count]
    if first is not None:  # whatever a ragged product makes of rows outside its groups, they get no gradient
        rows = jnp.where((flat[order] < here)[:, None], rows, 0)
    gate, up = (grouped_product(rows, kernels[name], groups) for name in ("gate", "up"))
    out = grouped_product(activate(config, gate) * up, kernels["down"], groups)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.size), unique_indices=True)
    parts = out[back].reshape(tokens, count, -1)
    if first is not None:
        parts = jnp.where((flat < here).reshape(tokens, count, 1), parts, 0)
    return jnp.einsum("nkd,nk->nd", parts.astype(jnp.float32), routing.weights).astype(x.dtype)


def activate(config: ModelConfig, gate: jax.Array) -> jax.Array:
    """The activation of the gate, of dense layers as well."""
    return nn.gelu(gate, approximate=True) if config.family.activation == "gelu_tanh" else nn.silu(gate)


class Experts(nn.Module):
    """The sparse layer in place of an MLP."""

    config: ModelConfig
    split: TensorSplit | None = None
    experts: ExpertSplit | None = None

    @nn.compact
    def __call__(self, x: jax.Array, counted: jax.Array | None = None) -> tuple[jax.Array, ExpertLoad | None]:
        """``[B, T, D] -> ([B, T, D], load of the tokens in counted)``.

        ``counted`` is [B, T] bool; without it there is no load. With ``split``, each device has some of every expert's
        F columns; with ``experts``, some of the experts.
        """
        config = self.config
        width, inner, count = x.shape[-1], config.intermediate_size, config.num_experts
        router = _Kernel(config, (width, count), name="router")()
        count = count if self.experts is None else count // jax.lax.axis_size(self.experts.axis)
        gain = 1.0 / math.sqrt(2 * config.num_layers)
        kernels = {
            "gate": _Kernel(config, (count, width, inner), name="gate")(),
            "up": _Kernel(config, (count, width, inner), name="up")(),
            "down": _Kernel(config, (count, inner, width), gain, name="down")(),
        }
        flat = x.reshape(-1, width)
        routing = route(config, router, flat)
        load = None if counted is None else ExpertLoad.of(routing, counted.reshape(-1))
        if self.experts is None:
            y = mix_experts(config, kernels, routing, flat)
        else:
            y = mix_experts(config, kernels, *self.experts.enter(flat, routing)[::-1], first=self.experts.first(count))
            y = self.experts.leave(y)
        y = y.reshape(x.shape)
        return (y if self.split is None else self.split.leave(y)), load


class _Kernel(nn.Module):
    """The parameter "kernel"; normal with variance 1 / fan-in, times ``gain``."""

    config: ModelConfig
    shape: tuple[int, ...]
    gain: float = 1.0

    @nn.compact
    def __call__(self) -> Any:
        stored: Any = self.get_variable("params", "kernel")
        if isinstance(stored, QTensor):
            return stored
        initializer = nn.initializers.normal(self.gain / math.sqrt(self.shape[-2]))
        return self.param("kernel", initializer, self.shape, jnp.dtype(self.config.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """Rows in groups, one per expert, one after the other.

    Attributes:
      sizes: [E] i32; rows beyond the last group belong to no expert here, and what becomes of them is arbitrary.
      place: [M] i32, the place of each row among the blocks' rows; None where groups are not cut into blocks.
      owner: [blocks] i32, each block's expert, or None; the number of experts or more for a block of other rows.
      rows: static, of a block.
    """

    sizes: jax.Array
    place: Any
    owner: Any
    rows: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, experts: jax.Array, count: int, *, blocked: bool) -> "Groups":
        """Groups of sorted experts [M], each at most ``count``, which stands for none.

        They are cut into blocks on CPUs, where a ragged product multiplies by every expert, and for quantised experts,
        all of which a ragged product would expand.
        """
        sizes = jnp.bincount(experts, length=count + 1).astype(jnp.int32)
        if not blocked:
            return cls(sizes[:count], None, None, 0)
        total = experts.shape[0]
        rows = min(_MOST_ROWS, max(1, 1 << (total // (2 * count)).bit_length() >> 1))
        blocks = -(-total // rows) + min(count + 1, total)
        needed = -(-sizes // rows)
        first_block = jnp.cumsum(needed) - needed
        first_row = jnp.cumsum(sizes) - sizes
        place = first_block[experts] * rows + jnp.arange(total) - first_row[experts]
        owner = jnp.searchsorted(jnp.cumsum(needed), jnp.arange(blocks), side="right")
        return cls(sizes[:count], place.astype(jnp.int32), owner.astype(jnp.int32), rows)


def grouped_product(x: jax.Array, kernels: jax.Array | QTensor, groups: Groups) -> jax.Array:
    """Rows times the kernel of their group's expert: [M, K], [E, K, N] -> [M, N] in the dtype of ``x``.

    All products with experts go through this function. Quantised experts are expanded one at a time, for each block of
    rows, and those without rows not at all; they need groups cut into blocks. Differentiable in ``x`` and plain
    ``kernels``, once and in reverse mode only.
    """
    if isinstance(kernels, QTensor):
        return _quantized_product(groups.rows, x, kernels, groups.place, groups.owner)
    kernels = kernels.astype(x.dtype)
    if groups.place is None:
        return jax.lax.ragged_dot(x, kernels, groups.sizes)
    return _blocked_product(groups.rows, x, kernels, groups.place, groups.owner)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantized_product(rows: int, x: jax.Array, kernels: QTensor, place: jax.Array, owner: jax.Array) -> jax.Array:
    """One product per block of rows of one expert, with packed kernels that get no gradient."""
    return _map_blocks(product, kernels.shape[-1], rows, x, kernels, place, owner)


def _quantized_forward(rows: int, *given: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    return _quantized_product(rows, *given), given[1:]


def _quantized_backward(rows: int, kept: tuple[Any, ...], g: jax.Array) -> tuple[jax.Array, None, None, None]:
    kernels, width = kept[0], kept[0].shape[-2]

    def transposed(cotangent: jax.Array, kernel: QTensor) -> jax.Array:
        blank = jnp.zeros((cotangent.shape[0], width), cotangent.dtype)  # a linear function is the same anywhere
        _, pull = jax.vjp(lambda part: product(part, kernel), blank)
        found: jax.Array = pull(cotangent)[0]
        return found

    return _map_blocks(transposed, width, rows, g, kernels, *kept[1:]), None, None, None


_quantized_product.defvjp(_quantized_forward, _quantized_backward)


def _map_blocks(
    function: Callable[[jax.Array, QTensor], jax.Array], width: int, rows: int, x: jax.Array, kernels: QTensor,
    place: jax.Array, owner: jax.Array,
) -> jax.Array:  # fmt: skip
    """``function(block's rows, block's kernel)`` of each row, [M, width]; zeros where a block has no expert here."""

    def one(carry: None, block: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        part, expert = block

        def multiplied(part: jax.Array) -> jax.Array:
            own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, expert, keepdims=False), kernels)
            return function(part, own)

        def blank(part: jax.Array) -> jax.Array:
            return mark(varying_axes(part, kernels))(jnp.zeros((rows, width), part.dtype))

        return carry, jax.lax.cond(expert < kernels.shape[0], multiplied, blank, part)

    _, out = jax.lax.scan(one, None, (_in_blocks(rows, x, place, owner), owner))
    return out.reshape(-1, width)[place]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked_product(rows: int, x: jax.Array, kernels: jax.Array, place: jax.Array, owner: jax.Array) -> jax.Array:
    """One product per block of rows of one expert."""

    def one(carry: None, block: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        part, expert = block
        return carry, part @ jax.lax.dynamic_index_in_dim(kernels, expert, keepdims=False)

    _, out = jax.lax.scan(one, None, (_in_blocks(rows, x, place, owner), owner))
    return out.reshape(-1, out.shape[-1])[place]


def _forward(rows: int, *given: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _blocked_product(rows, *given), given


def _backward(rows: int, kept: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    x, kernels, place, owner = kept
    dx = _blocked_product(rows, g, kernels.swapaxes(1, 2), place, owner)

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        part, cotangent, expert = block
        return total.at[expert].add(jnp.dot(part.T, cotangent, preferred_element_type=jnp.float32)), None

    blocks = (_in_blocks(rows, x, place, owner), _in_blocks(rows, g, place, owner), owner)
    total, _ = jax.lax.scan(add, jnp.zeros(kernels.shape, jnp.float32), blocks)
    return dx, total.astype(kernels.dtype), None, None


_blocked_product.defvjp(_forward, _backward)


def _in_blocks(rows: int, x: jax.Array, place: jax.Array, owner: jax.Array) -> jax.Array:
    """[M, K] -> [blocks, rows, K], zeros where a block is not full."""
    blank = jnp.zeros((owner.shape[0] * rows, x.shape[-1]), x.dtype)
    return blank.at[place].set(x, unique_indices=True).reshape(owner.shape[0], rows, -1)
