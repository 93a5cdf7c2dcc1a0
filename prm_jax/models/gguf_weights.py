"""Reads a GGUF file as a Hugging Face checkpoint: configuration, tensor names, and the order of rows."""

import math
import re
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import short
from prm_jax.models.gguf import GgufFile
from prm_jax.models.tensor_file import Index

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Keys that change the computation, with the values that leave it as it is.
_HARMLESS = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "nextn_predict_layers": (0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0, 0.1),
}


class GgufWeights:
    """The tensors of a GGUF file under Hugging Face names.

    Attributes:
      config: the model, read from the metadata and the list of tensors.
      shapes: by name.

    Raises:
      UserError: for an architecture or a setting that this package would compute differently.
    """

    def __init__(self, file: GgufFile):
        self._file = file
        self._names = {_hf_name(name): name for name in file.tensors if name != _ROPE_FACTORS}
        self.shapes = {hf: file.tensors[name].shape for hf, name in self._names.items()}
        self.config = ModelConfig.from_hf(self._hf_config())

    def spell(self, name: str) -> str:
        """The name of a tensor in the file."""
        return self._names.get(name, name)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The numbers of a tensor, with rows in the order of rotate-half embeddings, or the part at `index`.

        The whole tensor is dequantised in either case.
        """
        tensor = self._file.read(self._names[name])
        projection = re.search(r"self_attn\.([qk])_proj", name)
        if projection and self.config.architecture == "llama":
            heads = self.config.num_heads if projection[1] == "q" else self.config.num_kv_heads
            # Stored for rotation of adjacent features: [heads, pairs, 2, ...] instead of [heads, 2, pairs, ...].
            pairs = tensor.reshape(heads, self.config.head_dim // 2, 2, *tensor.shape[1:])
            tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
        return tensor if index is None else tensor[index]

    def _hf_config(self) -> dict[str, Any]:
        architecture = self._file.metadata.get("general.architecture")
        if architecture not in _ARCHITECTURES:
            raise UserError(
                f"{self._file.path}: general.architecture={architecture!r} is not supported, expected "
                + ", ".join(_ARCHITECTURES)
            )
        for key, harmless in _HARMLESS.items():
            value = self._get(key)
            if value is not None and value not in harmless:
                raise UserError(f"{self._file.path}: {architecture}.{key}={value!r} is not supported")
        heads, width = self._need("attention.head_count"), self._need("embedding_length")
        head_dim = self._optional("attention.key_length") or width // heads
        for key in ("attention.value_length", "rope.dimension_count"):
            if (self._get(key) or head_dim) != head_dim:
                raise UserError(
                    f"{self._file.path}: {architecture}.{key}={self._get(key)} is not supported, expected the "
                    f"head's size, {head_dim}"
                )
        embedding = self.shapes.get("model.embed_tokens.weight") or (0,)
        return {
            "model_type": architecture,
            "vocab_size": embedding[0],
            "hidden_size": width,
            "intermediate_size": self._need("feed_forward_length"),
            "num_hidden_layers": self._need("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._optional("attention.head_count_kv") or heads,
            "head_dim": head_dim,
            "max_position_embeddings": self._need("context_length"),
            "rms_norm_eps": _shortest(self._need("attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self._optional("rope.freq_base") or 10000.0),
            "rope_scaling": self._rope_scaling(head_dim),
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in self.shapes,
        }

    def _rope_scaling(self, head_dim: int) -> dict[str, Any] | None:
        kind = self._get("rope.scaling.type")
        if _ROPE_FACTORS in self._file.tensors:
            theta = _shortest(self._optional("rope.freq_base") or 10000.0)
            factors = self._file.read(_ROPE_FACTORS).astype(np.float64)
            found = llama3_scaling(factors, theta) if factors.shape == (head_dim // 2,) else None
            if found is None or kind not in (None, "none", "llama3"):
                raise UserError(f"{self._file.path}: {_ROPE_FACTORS} is not a known rotary scaling")
            return found
        if kind in (None, "none"):
            return None
        scaling = {
            "factor": self._get("rope.scaling.factor"),
            "original_max_position_embeddings": self._get("rope.scaling.original_context_length"),
            "beta_fast": self._get("rope.scaling.yarn_beta_fast"),
            "beta_slow": self._get("rope.scaling.yarn_beta_slow"),
        }
        return {"rope_type": kind} | {name: value for name, value in scaling.items() if value is not None}

    def _get(self, key: str) -> Any:
        return self._file.metadata.get(f"{self._file.metadata['general.architecture']}.{key}")

    def _need(self, key: str) -> Any:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            architecture = self._file.metadata["general.architecture"]
            raise UserError(f"{self._file.path}: {architecture}.{key}={short(repr(value))}, expected a positive number")
        return value

    def _optional(self, key: str) -> Any:
        """A number, or None for 0 and for a key that is missing."""
        return self._need(key) if self._get(key) not in (None, 0) else None


def gguf_name(name: str) -> str:
    """What a tensor with a Hugging Face name is called in GGUF files.

    Raises:
      KeyError: it has no such name.
    """
    for own, theirs in _WHOLE.items():
        if theirs == name:
            return own
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    names = {theirs: own for own, theirs in _IN_LAYER.items()}
    if match is None or match[2] not in names:
        raise KeyError(name)
    return f"blk.{match[1]}.{names[match[2]]}.{match[3]}"


def rows_for_gguf(config: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """The inverse of `GgufWeights.read`: the order of rows that GGUF files of this architecture have."""
    projection = re.search(r"self_attn\.([qk])_proj", name)
    if projection is None or config.architecture != "llama":
        return tensor
    heads = config.num_heads if projection[1] == "q" else config.num_kv_heads
    pairs = tensor.reshape(heads, 2, config.head_dim // 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def llama3_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The Llama 3 rotary scaling that divides each frequency by its factor; None if there is none.

    GGUF keeps the divisors but not the parameters.  Between its two bounds the scaling interpolates:
    ``1 / divisor = (1 - s) / factor + s`` with ``s = (context / wavelength - low) / (high - low)``, a straight
    line in ``1 / wavelength``; ``context``, ``low`` and ``high`` matter up to a common scale, and ``low`` is 1
    in every published model.

    Args:
      factors: [head_dim / 2] f64.
      theta: base of the rotary frequencies.

    Returns:
      ``rope_scaling`` as in a ``config.json``.
    """
    frequencies = theta ** (-np.arange(len(factors)) / len(factors))
    wavelengths = 2 * math.pi / frequencies
    factor = float(np.max(factors))
    between = (factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6))
    if np.all(np.abs(factors - 1) < 1e-6):
        return None
    if between.sum() < 2:
        candidates = [(8192, 4.0)]
    else:
        smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(1 / wavelengths[between], smooth, 1)
        high = 1 - 1 / offset
        candidates = [(round(slope * (high - 1)), round(float(high), 4))]
    for context, high in candidates:
        if high <= 1 or context < 1:
            continue
        smooth = np.clip((context / wavelengths - 1) / (high - 1), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": _shortest(factor),
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def _hf_name(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in _IN_LAYER:
        return f"model.layers.{int(match[1])}.{_IN_LAYER[match[2]]}.{match[3]}"
    return name


def _shortest(value: float) -> float:
    """The decimal that a float32 in a file was written from: 1e-05 rather than 9.99999974e-06."""
    return float(str(np.float32(value)))
