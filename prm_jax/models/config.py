"""Architecture of a decoder language model: one frozen dataclass for all families."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from prm_jax.errors import UserError
from prm_jax.models import hf_config
from prm_jax.models.families import FAMILIES, Family
from prm_jax.models.rope_scaling import RopeScaling

Architecture = Literal[
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "olmo2", "granite", "smollm3", "phi3", "qwen3_moe",
    "mixtral",
]  # fmt: skip
Rotation = Literal["plain", "local", "none"]
"""Rotary positions of a layer: with the model's frequencies, with ``rope_local_theta``, or none."""
Implementation = Literal["auto", "naive", "blockwise", "splash", "cudnn"]
"""Of attention, see ``attention.attend``."""
DType = Literal["float32", "bfloat16", "float16"]

_DTYPES = ("float32", "bfloat16", "float16")
_REMAT = ("none", "full", "dots", "attention")
_LAYERS = ("auto", "manual", "constraints")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder language model's architecture and how it is computed; hashable, so static under ``jax.jit``.

    The first block of fields defines the model and round-trips through ``from_hf`` / ``to_hf``; the second
    controls how it is computed and may be changed freely with ``dataclasses.replace``.

    Attributes:
      architecture: family, see ``families``; decides the names in files, which norms and biases there are, and the
        activation.
      vocab_size: V.
      hidden_size: D.
      intermediate_size: width of the gated feed-forward layer, or of each expert.
      num_layers: L.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides ``num_heads`` (grouped-query attention).
      head_dim: features per head, even; need not be ``hidden_size / num_heads``.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None for plain rotary embeddings.
      rope_local_theta: base of the unscaled rotary frequencies in layers with a window; None: as in the others.
      rotary_dim: features per head that are rotated, the first ones, even; None for all.
      unrotated_layers: layers without rotary positions.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: the head is the embedding matrix.
      qk_norm: RMS norm over queries and keys before the rotation, per head or over all heads by the family.
      attention_bias: biases on the attention projections.
      mlp_bias: biases in the feed-forward layer.
      max_position_embeddings: context length of the pretrained model.
      sliding_window: tokens that a query sees at most, its own included, in layers that ``layer_windows`` does not
        name; None for all.
      layer_windows: () or one window per layer, None for a layer without one.
      attn_softcap: c of ``c * tanh(score / c)`` on attention scores, or None.
      logit_softcap: c of the same function on logits, or None.
      attn_scale: factor of attention scores; None for ``1 / sqrt(head_dim)``.
      embed_scale: factor of embeddings, rounded to the compute dtype.
      residual_scale: factor of what attention and MLP add to the residual stream.
      logit_divisor: logits are divided by it.
      num_experts: experts per layer, E; 0 for a dense model.
      experts_per_token: experts that process a token.
      norm_topk: whether the weights of a token's experts sum to 1.
      dtype: of new parameters.
      compute_dtype: of activations and matrix products; norms, softmax, rotations and log-sum-exps are
        float32.
      remat: what the backward pass recomputes: nothing ("none"), whole layers ("full"), or everything but matrix
        products without batch dimensions ("dots"), or everything but attention ("attention").
      scan_unroll: layers per scan iteration; ``num_layers`` unrolls the scan completely (less CPU time for small
        models, longer compilation).
      attention: see ``attention.attend``: "auto", "naive", or one whose memory is linear in the row's length:
        "blockwise", "splash" (flash attention on TPUs), "cudnn" (on NVIDIA GPUs, half-precision compute only).
      layers: how layers are divided over a mesh: "manual" in ``shard_map``, see ``manual_layers``; "constraints" leaves
        communication to the compiler; "auto" is manual wherever the mesh's axes divide rows and heads.
      lora_alpha: numerator of the scale ``lora_alpha / rank`` of low-rank adapters, if there are any.
    """

    architecture: Architecture = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None
    rotary_dim: int | None = None
    unrotated_layers: tuple[int, ...] = ()
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    layer_windows: tuple[int | None, ...] = ()
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    attn_scale: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    num_experts: int = 0
    experts_per_token: int = 0
    norm_topk: bool = True

    dtype: DType = "float32"
    compute_dtype: DType = "float32"
    remat: Literal["none", "full", "dots", "attention"] = "none"
    scan_unroll: int = 1
    attention: Implementation = "auto"
    layers: Literal["auto", "manual", "constraints"] = "auto"
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        _choice("architecture", self.architecture, tuple(FAMILIES))
        _choice("dtype", self.dtype, _DTYPES)
        _choice("compute_dtype", self.compute_dtype, _DTYPES)
        _choice("remat", self.remat, _REMAT)
        _choice("attention", self.attention, get_args(Implementation))
        _choice("layers", self.layers, _LAYERS)
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
            "head_dim", "max_position_embeddings", "scan_unroll",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"model config: {name} must be a positive integer, found {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model config: num_kv_heads must divide num_heads, found {self.num_kv_heads} and {self.num_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model config: head_dim must be even (rotary embeddings), found {self.head_dim}")
        self._check_family()
        if self.attention == "cudnn" and self.compute_dtype == "float32":
            raise UserError("model config: attention='cudnn' needs compute_dtype bfloat16 or float16")
        self._check_windows()
        self._check_scales()

    def _check_windows(self) -> None:
        if self.layer_windows and len(self.layer_windows) != self.num_layers:
            raise UserError(
                f"model config: layer_windows needs one entry for each of {self.num_layers} layers, "
                f"found {len(self.layer_windows)}"
            )
        for window in (self.sliding_window, *self.layer_windows):
            if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
                raise UserError(
                    f"model config: an attention window must be a positive integer or None, found {window!r}"
                )

    def _check_scales(self) -> None:
        for name in ("attn_softcap", "logit_softcap", "attn_scale", "rope_local_theta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"model config: {name} must be positive or None, found {value!r}")
        if self.logit_softcap is not None and self.logit_divisor != 1:
            raise UserError("model config: logit_softcap with logit_divisor is not supported; no family has both")
        scaling = self.rope_scaling
        if scaling is not None and scaling.short_factor:
            pairs, found = (self.rotary_dim or self.head_dim) // 2, len(scaling.short_factor)
            if found != pairs:
                raise UserError(f"model config: rope_scaling.short_factor needs {pairs} entries, found {found}")

    def _check_family(self) -> None:
        """Refuses fields that contradict the family."""
        family = self.family
        if self.qk_norm != (family.qk_norm is not None):
            raise UserError(f"model config: qk_norm={self.qk_norm} does not fit architecture {self.architecture!r}")
        if self.attention_bias != (family.attention_bias == "always") and family.attention_bias != "option":
            raise UserError(f"model config: {self.architecture} {family.attention_bias} has attention_bias")
        if self.mlp_bias and not family.mlp_bias:
            raise UserError(f"model config: mlp_bias does not exist in architecture {self.architecture!r}")
        if (self.num_experts > 0) != (family.experts is not None) or self.num_experts < 0:
            raise UserError(
                f"model config: num_experts={self.num_experts} does not fit architecture {self.architecture!r}"
            )
        if not 0 <= self.experts_per_token <= self.num_experts or (self.num_experts and not self.experts_per_token):
            raise UserError(
                f"model config: experts_per_token must be 1 to {self.num_experts}, the experts, found "
                f"{self.experts_per_token}"
            )
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim):
            raise UserError(
                f"model config: rotary_dim must be even and at most head_dim={self.head_dim}, found {self.rotary_dim}"
            )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The attention window of every layer."""
        return self.layer_windows or (self.sliding_window,) * self.num_layers

    @property
    def window_kinds(self) -> tuple[int | None, ...]:
        """The distinct ones of ``windows``, in order of appearance."""
        return tuple(dict.fromkeys(self.windows))

    @property
    def family(self) -> Family:
        """What distinguishes the architecture from others."""
        return FAMILIES[self.architecture]

    @property
    def out_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.attention_bias and self.family.out_bias

    @property
    def score_scale(self) -> float:
        """Factor of attention scores."""
        return 1.0 / math.sqrt(self.head_dim) if self.attn_scale is None else self.attn_scale

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """The rotary positions of every layer."""

        def of(layer: int, window: int | None) -> Rotation:
            if layer in self.unrotated_layers:
                return "none"
            return "plain" if window is None or self.rope_local_theta is None else "local"

        return tuple(of(layer, window) for layer, window in enumerate(self.windows))

    @property
    def rotation_kinds(self) -> tuple[Rotation, ...]:
        """The distinct ones of ``rotations``, in order of appearance."""
        return tuple(dict.fromkeys(self.rotations))

    @property
    def context(self) -> int:
        """Tokens per row at most: the context of the pretrained model, as far as this package computes it."""
        return min(self.max_position_embeddings, self.longest_row or self.max_position_embeddings)

    @property
    def longest_row(self) -> int | None:
        """Tokens per row up to which rotations do not depend on the row's length; None for any number."""
        scaling = self.rope_scaling
        if scaling is None or scaling.kind not in ("dynamic", "longrope"):
            return None
        return self.max_position_embeddings if scaling.kind == "dynamic" else scaling.original_max_position_embeddings

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads a Hugging Face ``config.json``.

        Args:
          config: the parsed JSON of a causal language model of one of ``families.FAMILIES`` (SmolLM2 is a Llama).

        Returns:
          The configuration with every run-time field (dtypes, remat, ...) at its default.

        Raises:
          UserError: naming a field that this package would compute differently: another architecture, or windows,
            experts, multipliers, partial rotary embeddings or an activation that the family does not have, an unknown
            rotary scaling or field of one, quantised weights, and so on.
        """
        return cls(**hf_config.read(config))

    def to_hf(self) -> dict[str, Any]:
        """The inverse of ``from_hf``: a dict that is valid as ``config.json``, without the run-time fields."""
        return hf_config.write(vars(self))


def _choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"model config: unknown {name} {value!r}; known: {', '.join(known)}")
