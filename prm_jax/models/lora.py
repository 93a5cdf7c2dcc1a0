"""Low-rank adapters of frozen kernels (arXiv:2106.09685): ``y = x W + (x A) B alpha / r``."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.qtensor import QTensor, dequantize
from prm_jax.models.transformer import Params

_HOMES = {
    "q": "attn", "k": "attn", "v": "attn", "o": "attn", "gate": "mlp", "up": "mlp", "down": "mlp",
}  # fmt: skip
_LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which projections get adapters, and how large.

    Attributes:
      rank: r, at least 1.
      alpha: numerator of the scale ``alpha / rank``; must equal ``ModelConfig.lora_alpha``, which the forward pass
        uses.
      targets: names among q, k, v, o, gate, up, down; None for all that the model has. Experts take no adapters.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"LoRA rank must be a positive integer, found {self.rank!r}")
        if self.targets is None:
            return
        object.__setattr__(self, "targets", tuple(self.targets))
        unknown = [name for name in self.targets if name not in _HOMES]
        if unknown or not self.targets:
            raise UserError(f"LoRA targets {unknown or 'are empty'}; known: {', '.join(_HOMES)}")


def init_lora(config: ModelConfig, params: Params, key: jax.Array, lora: LoRAConfig) -> Params:
    """New adapters: ``lora_a`` normal with variance 1 / fan-in, ``lora_b`` zero, so that the model is unchanged.

    Args:
      config: the model.
      params: its parameters with stacked layers; only shapes are read.
      key: typed PRNG key, consumed.
      lora: rank, scale and targets.

    Returns:
      ``{"layers": {"attn" or "mlp": {target: {"lora_a": [L, in, r], "lora_b": [L, r, out]}}}}``, float32
      whatever the precision of the frozen kernels, since they are trained.

    Raises:
      UserError: when ``lora.alpha`` is not ``config.lora_alpha``, or a target is a mixture of experts.
    """
    if lora.alpha != config.lora_alpha:
        raise UserError(
            f"LoRA alpha {lora.alpha} is not the model config's lora_alpha {config.lora_alpha}; "
            "use dataclasses.replace(config, lora_alpha=...)"
        )
    adapters: Params = {}
    possible = tuple(name for name, home in _HOMES.items() if home == "attn" or not config.num_experts)
    targets = possible if lora.targets is None else lora.targets
    experts = [name for name in targets if name not in possible]
    if experts:
        raise UserError(f"LoRA targets {experts} are experts, which take no adapters; use targets among {possible}")
    for name, one_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        layers, width, features = params["layers"][_HOMES[name]][name]["kernel"].shape
        lora_a = jax.random.normal(one_key, (layers, width, lora.rank), jnp.float32) / math.sqrt(width)
        lora_b = jnp.zeros((layers, lora.rank, features), jnp.float32)
        adapters.setdefault(_HOMES[name], {})[name] = {"lora_a": lora_a, "lora_b": lora_b}
    return {"layers": adapters}


def join(base: Params, adapters: Params) -> Params:
    """The tree with the leaves of both; nothing is copied.

    The model applies adapters that it finds in its parameters.  To train adapters alone, differentiate with respect
    to them and close over ``base``.

    Raises:
      ValueError: if the adapters name a projection that the base does not have.
    """
    joined = dict(base)
    for name, value in adapters.items():
        if name in _LEAVES:
            joined[name] = value
        elif isinstance(base.get(name), dict):
            joined[name] = join(base[name], value)
        else:
            raise ValueError(f"adapters for {name!r}, which the base does not have: {sorted(base)}")
    return joined


def split(params: Params) -> tuple[Params, Params]:
    """The inverse of ``join``: ``(base, adapters)``; adapters may be empty."""
    base: Params = {}
    adapters: Params = {}
    for name, value in params.items():
        if name in _LEAVES:
            adapters[name] = value
        elif isinstance(value, dict):
            base[name], inner = split(value)
            if inner:
                adapters[name] = inner
        else:
            base[name] = value
    return base, adapters


def merge(config: ModelConfig, params: Params) -> Params:
    """The equivalent plain model: ``kernel + lora_a lora_b alpha / r``, summed in float32; quantised leaves expanded.

    Args:
      config: gives ``lora_alpha``.
      params: a joined tree.

    Returns:
      A tree without adapters, kernels in their own dtype (float32 where they were quantised); other leaves are shared
      with ``params``.
    """
    merged: Params = {}
    for name, value in params.items():
        if name not in _LEAVES:
            value = dequantize(value) if isinstance(value, QTensor) else value
            merged[name] = merge(config, value) if isinstance(value, dict) else value
    if "lora_a" in params:
        merged["kernel"] = _fold(config, params)
    return merged


def _fold(config: ModelConfig, linear: dict[str, Any]) -> jax.Array:
    kernel, lora_a, lora_b = linear["kernel"], linear["lora_a"], linear["lora_b"]
    kernel = dequantize(kernel) if isinstance(kernel, QTensor) else kernel
    product = jnp.einsum(
        "...ir,...ro->...io",
        lora_a.astype(jnp.float32),
        lora_b.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return (kernel.astype(jnp.float32) + product * (config.lora_alpha / lora_a.shape[-1])).astype(kernel.dtype)
