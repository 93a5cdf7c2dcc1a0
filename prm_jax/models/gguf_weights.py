"""Reads a GGUF file as a Hugging Face checkpoint: configuration, tensor names, and the order of rows."""

import math
import pathlib
import re
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.families import FAMILIES, Family
from prm_jax.models.files import short
from prm_jax.models.gguf import GgufFile
from prm_jax.models.gguf_names import Stored, hf_names
from prm_jax.models.tensor_file import Index

_ROPE_FACTORS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
# Keys that change the computation, with the values that leave it as it is; families name those that they read.
_HARMLESS = {
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "expert_weights_norm": (True,),
    "expert_gating_func": (0, 1),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (),
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
    "rope.freq_base_swa": (),
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
        self._family = self._read_family()
        self._last: tuple[str, np.ndarray] | None = None
        buffers = (_ROPE_FACTORS, _SHORT, _LONG)
        experts = int(self._optional("expert_count") or 0)
        self._stored = {
            hf: stored
            for name in file.tensors
            if name not in buffers
            for hf, stored in hf_names(self._family, name, experts).items()
        }
        self.shapes = {hf: self._shape(stored) for hf, stored in self._stored.items()}
        self.config = ModelConfig.from_hf(self._hf_config())

    def spell(self, name: str) -> str:
        """The name of a tensor in the file."""
        return self._stored[name].name if name in self._stored else name

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The numbers of a tensor, with rows in the order of rotate-half embeddings, or the part at `index`.

        The whole tensor is dequantised in either case, and kept until another one is read: it may hold all experts.
        """
        stored = self._stored[name]
        if self._last is None or self._last[0] != stored.name:
            self._last = stored.name, self._file.read(stored.name)
        tensor = self._last[1] if stored.expert is None else self._last[1][stored.expert]
        tensor = rows_from_gguf(self.config, name, tensor)
        return tensor if index is None else tensor[index]

    def kind(self, name: str) -> int:
        """GGML's number of a tensor's type."""
        return self._file.tensors[self._stored[name].name].kind

    def read_blocks(self, name: str, nbytes: int, index: Index | None = None) -> np.ndarray:
        """A matrix of blocks of 32 inputs as it is stored, [out, in / 32, nbytes] u8, with rows as in `read`."""
        stored = self._stored[name]
        raw = self._file.blocks(stored.name, 32, nbytes)
        raw = rows_from_gguf(self.config, name, raw if stored.expert is None else raw[stored.expert])
        return raw if index is None else raw[index]

    @property
    def path(self) -> pathlib.Path:
        """Of the file."""
        return self._file.path

    def _shape(self, stored: Stored) -> tuple[int, ...]:
        shape = self._file.tensors[stored.name].shape
        return shape if stored.expert is None else shape[1:]

    def _read_family(self) -> Family:
        """By the architecture, and by whether there are experts: Mixtral's files are Llama's with experts."""
        architecture = self._file.metadata.get("general.architecture")
        known = [family for family in FAMILIES.values() if family.gguf is not None]
        named = [family for family in known if family.gguf and family.gguf.architecture == architecture]
        if not named:
            listed = dict.fromkeys(family.gguf.architecture for family in known if family.gguf)
            raise UserError(
                f"{self._file.path}: general.architecture={architecture!r} is not supported, expected "
                + ", ".join(listed)
            )
        sparse = bool(self._get("expert_count"))
        fitting = [family for family in named if (family.experts is not None) == sparse]
        if not fitting:
            raise UserError(
                f"{self._file.path}: {architecture}.expert_count={self._get('expert_count')!r} is not supported"
            )
        return fitting[0]

    def _hf_config(self) -> dict[str, Any]:
        form = self._family.gguf
        assert form is not None
        for key, harmless in _HARMLESS.items():
            value = self._get(key)
            if value is not None and key not in form.keys and value not in harmless:
                raise UserError(f"{self._file.path}: {form.architecture}.{key}={value!r} is not supported")
        heads, width = self._need("attention.head_count"), self._need("embedding_length")
        head_dim = self._optional("attention.key_length") or width // heads
        sizes = {"attention.value_length": head_dim, "rope.dimension_count": head_dim}
        for key, size in sizes.items():
            if key not in form.keys and (self._get(key) or size) != size:
                raise UserError(
                    f"{self._file.path}: {form.architecture}.{key}={self._get(key)} is not supported, expected the "
                    f"head's size, {head_dim}"
                )
        embedding = self.shapes.get("model.embed_tokens.weight") or (0,)
        found = {
            "model_type": self._family.model_type,
            "vocab_size": embedding[0],
            "hidden_size": width,
            "num_hidden_layers": self._need("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._optional("attention.head_count_kv") or heads,
            "head_dim": head_dim,
            "max_position_embeddings": self._need("context_length"),
            "rms_norm_eps": shortest(self._need("attention.layer_norm_rms_epsilon")),
            "rope_theta": shortest(self._optional("rope.freq_base") or 10000.0),
            "rope_scaling": self._rope_scaling(head_dim),
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in self.shapes,
        }
        if "expert_feed_forward_length" not in form.keys:
            found["intermediate_size"] = self._need("feed_forward_length")
        numbers = {key: self._get(key) for key in form.keys if self._get(key) is not None}
        return found | form.read({**found, **{key: shortest(v) for key, v in numbers.items()}})

    def _rope_scaling(self, head_dim: int) -> dict[str, Any] | None:
        kind = self._get("rope.scaling.type")
        if _ROPE_FACTORS in self._file.tensors:
            theta = shortest(self._optional("rope.freq_base") or 10000.0)
            factors = self._file.read(_ROPE_FACTORS).astype(np.float64)
            found = llama3_scaling(factors, theta) if factors.shape == (head_dim // 2,) else None
            if found is None or kind not in (None, "none", "llama3"):
                raise UserError(f"{self._file.path}: {_ROPE_FACTORS} is not a known rotary scaling")
            return found
        if _SHORT in self._file.tensors:
            return self._longrope(head_dim)
        if kind in (None, "none"):
            return None
        scaling = {
            "factor": self._get("rope.scaling.factor"),
            "original_max_position_embeddings": self._get("rope.scaling.original_context_length"),
            "beta_fast": self._get("rope.scaling.yarn_beta_fast"),
            "beta_slow": self._get("rope.scaling.yarn_beta_slow"),
        }
        return {"rope_type": kind} | {name: value for name, value in scaling.items() if value is not None}

    def _longrope(self, head_dim: int) -> dict[str, Any]:
        factors = {
            name: [shortest(one) for one in self._file.read(tensor).reshape(-1)]
            for name, tensor in (("short_factor", _SHORT), ("long_factor", _LONG))
            if tensor in self._file.tensors
        }
        found = {
            "rope_type": "longrope",
            "original_max_position_embeddings": self._get("rope.scaling.original_context_length"),
            "partial_rotary_factor": (self._optional("rope.dimension_count") or head_dim) / head_dim,
        }
        attention = self._optional("rope.scaling.attn_factor")
        return found | factors | ({} if attention is None else {"attention_factor": shortest(attention)})

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


def rows_from_gguf(config: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor as Hugging Face files have it: rows for rotate-half embeddings, scales of norms without their offset."""
    if name.endswith("norm.weight") and config.family.norm_offset:
        return tensor - np.float32(config.family.norm_offset)
    heads = _heads_of_pairs(config, name)
    if not heads:
        return tensor
    # Stored for rotation of adjacent features: [heads, pairs, 2, ...] instead of [heads, 2, pairs, ...].
    pairs = tensor.reshape(heads, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def rows_for_gguf(config: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """The inverse of `rows_from_gguf`."""
    if name.endswith("norm.weight") and config.family.norm_offset:
        return tensor.astype(np.float32) + np.float32(config.family.norm_offset)
    heads = _heads_of_pairs(config, name)
    if not heads:
        return tensor
    pairs = tensor.reshape(heads, 2, config.head_dim // 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def _heads_of_pairs(config: ModelConfig, name: str) -> int:
    """Heads of a projection whose rows GGUF files keep in another order; 0 for other tensors."""
    projection = re.search(r"self_attn\.([qk])_proj", name)
    if projection is None or config.family.gguf is None or not config.family.gguf.interleaved:
        return 0
    return config.num_heads if projection[1] == "q" else config.num_kv_heads


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
                "factor": shortest(factor),
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def shortest(value: Any) -> Any:
    """The decimal that a float32 in a file was written from: 1e-05 rather than 9.99999974e-06; others as they are."""
    if isinstance(value, bool) or not isinstance(value, float | np.floating):
        return value
    return float(str(np.float32(value)))
