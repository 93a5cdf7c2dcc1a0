"""Architecture of a decoder language model: one frozen dataclass for the Llama, Qwen2 and Qwen3 families."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from prm_jax.errors import UserError
from prm_jax.models import hf_config
from prm_jax.models.rope_scaling import RopeScaling

Architecture = Literal["llama", "qwen2", "qwen3"]
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
      architecture: family; decides the names in files and which projections have biases (Qwen2: q, k, v but not o).
      vocab_size: V.
      hidden_size: D.
      intermediate_size: width of the gated feed-forward layer.
      num_layers: L.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides ``num_heads`` (grouped-query attention).
      head_dim: features per head, even; need not be ``hidden_size / num_heads``.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None for plain rotary embeddings.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: the head is the embedding matrix.
      qk_norm: RMS norm over each query and key head before the rotation (Qwen3).
      attention_bias: biases on the attention projections.
      mlp_bias: biases in the feed-forward layer.
      max_position_embeddings: context length of the pretrained model.
      sliding_window: tokens that a query sees at most, its own included, in layers that ``layer_windows`` does not
        name; None for all.
      layer_windows: () or one window per layer, None for a layer without one.
      attn_softcap: c of ``c * tanh(score / c)`` on attention scores, or None.
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
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    layer_windows: tuple[int | None, ...] = ()
    attn_softcap: float | None = None

    dtype: DType = "float32"
    compute_dtype: DType = "float32"
    remat: Literal["none", "full", "dots", "attention"] = "none"
    scan_unroll: int = 1
    attention: Implementation = "auto"
    layers: Literal["auto", "manual", "constraints"] = "auto"
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        _choice("architecture", self.architecture, hf_config.ARCHITECTURES)
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
        if self.qk_norm != (self.architecture == "qwen3"):
            raise UserError(f"model config: qk_norm={self.qk_norm} does not fit architecture {self.architecture!r}")
        if self.architecture == "qwen2" and not self.attention_bias:
            raise UserError("model config: qwen2 always has attention_bias")
        if self.mlp_bias and self.architecture != "llama":
            raise UserError(f"model config: mlp_bias does not exist in architecture {self.architecture!r}")
        if self.attention == "cudnn" and self.compute_dtype == "float32":
            raise UserError("model config: attention='cudnn' needs compute_dtype bfloat16 or float16")
        self._check_windows()

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
        if self.attn_softcap is not None and not self.attn_softcap > 0:
            raise UserError(f"model config: attn_softcap must be positive or None, found {self.attn_softcap!r}")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The attention window of every layer."""
        return self.layer_windows or (self.sliding_window,) * self.num_layers

    @property
    def window_kinds(self) -> tuple[int | None, ...]:
        """The distinct ones of ``windows``, in order of appearance."""
        return tuple(dict.fromkeys(self.windows))

    @property
    def out_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.attention_bias and self.architecture != "qwen2"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads a Hugging Face ``config.json``.

        Args:
          config: the parsed JSON of a ``LlamaForCausalLM`` (SmolLM2 is one), ``Qwen2ForCausalLM``,
            ``Qwen3ForCausalLM`` or ``MistralForCausalLM``.  A Mistral model is read as a Llama whose context is
            its attention window, since within the window the two compute the same.

        Returns:
          The configuration with every run-time field (dtypes, remat, ...) at its default.

        Raises:
          UserError: naming a field that this package would compute differently: another architecture, sliding
            windows in use, experts, partial rotary embeddings, an unknown rotary scaling, field of one, or
            activation, quantised weights, and so on.
        """
        return cls(**hf_config.read(config))

    def to_hf(self) -> dict[str, Any]:
        """The inverse of ``from_hf``: a dict that is valid as ``config.json``, without the run-time fields."""
        return hf_config.write(vars(self))


def compiler_options(*configs: ModelConfig) -> dict[str, bool] | None:
    """Options for ``jax.jit`` of a program that compares log-probs of models with these configs.

    In half precision, XLA by default skips the rounding between fused operations, and does so differently in a forward
    pass that is differentiated and in one that is not: equal parameters give unequal log-probs. With these options
    every value is rounded to its dtype. None (XLA's defaults) if all models compute in float32.
    """
    if all(config.compute_dtype == "float32" for config in configs):
        return None
    return {"xla_allow_excess_precision": False}


def _choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"model config: unknown {name} {value!r}; known: {', '.join(known)}")
