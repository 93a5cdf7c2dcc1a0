"""LoRA adapter directories as the PEFT library writes them: ``adapter_config.json``, ``adapter_model.safetensors``."""

import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.checkpoint_layout import Slot, slots
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import read_json, short
from prm_jax.models.hub import find_model
from prm_jax.models.safetensors_files import Shards
from prm_jax.models.tensor_file import Index

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings that change the computation, with the values that leave it as it is.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None, []),
}
_MERGE = (
    "merge the adapter where PEFT is installed: "
    "peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)"
)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Low-rank factors of one kernel: ``kernel [out, in] + scale * b @ a``."""

    a: np.ndarray  # [r, in] f32
    b: np.ndarray  # [out, r] f32
    scale: float


def is_adapter(path: pathlib.Path) -> bool:
    """Whether a directory holds an adapter and no model of its own."""
    return path.is_dir() and (path / CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that an adapter directory belongs to: ``base_model_name_or_path`` of its config.

    Raises:
      UserError: if it names none, or one that is neither there nor in the hub's cache.
    """
    name = read_json(path / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{path / CONFIG}: base_model_name_or_path={name!r}, expected the path of the base model")
    beside = path / name
    if beside.is_dir():  # a path relative to the adapter
        return beside
    try:
        return find_model(name)
    except UserError as error:
        raise UserError(
            f"{path} is a LoRA adapter whose base model is not available: {error}; or set base_model_name_or_path in "
            f"{CONFIG} to the base model's directory"
        ) from error


class Adapter:
    """The adapter of a directory, checked against its base model.

    Args:
      path: the directory.
      config: of the base model.

    Raises:
      UserError: for an adapter of another kind than LoRA, of other modules than linear layers, or with shapes that
        do not fit the base model.
    """

    def __init__(self, path: pathlib.Path, config: ModelConfig):
        self._path = path
        self._config = config
        settings = read_json(path / CONFIG)
        _check_settings(path, settings)
        self._alpha = _positive(path, settings, "lora_alpha")
        by_name = {name: slot for slot in slots(config) for name in slot.names if _adaptable(slot)}
        by_name |= {name: slot for slot in slots(config) for name in slot.names if slot.path == ("head", "kernel")}
        self._pairs = self._read(settings, by_name)

    def merge(self, name: str, tensor: np.ndarray, index: Index | None = None) -> np.ndarray:
        """A tensor of the base model, or the part of it at `index`, with the adapter added, float32.

        It is returned as it is if it has no adapter.
        """
        pair = self._pairs.get(name)
        if pair is None:
            return tensor
        rows, columns = (*(index or ()), slice(None), slice(None))[:2]
        return tensor.astype(np.float32) + np.float32(pair.scale) * (pair.b[rows] @ pair.a[:, columns])

    def tree(self) -> tuple[float, dict[str, Any]]:
        """The adapter for ``lora.join``.

        Returns:
          (``lora_alpha`` for the model's config, ``{"layers": {block: {target: {"lora_a": [L, in, r],
          "lora_b": [L, r, out]}}}}`` float32).  Layers without an adapter get zeros, and differences in rank and
          scale are absorbed into ``lora_b``.

        Raises:
          UserError: for an adapter on the output head, which can only be merged.
        """
        adapters: dict[str, Any] = {}
        for slot in slots(self._config):
            pairs = [self._pairs.get(name) for name in slot.names]
            if all(pair is None for pair in pairs):
                continue
            if not slot.stack:
                raise UserError(f"{self._path} adapts {slot.name}, which cannot be kept apart; load it merged")
            _, block, target, _ = slot.path
            adapters.setdefault(block, {})[target] = self._stack(slot, pairs)
        return self._alpha, {"layers": adapters}

    def _stack(self, slot: Slot, pairs: list[_Pair | None]) -> dict[str, np.ndarray]:
        features, width = slot.shape
        rank = max(pair.a.shape[0] for pair in pairs if pair is not None)
        lora_a = np.zeros((*slot.stack, width, rank), np.float32)
        lora_b = np.zeros((*slot.stack, rank, features), np.float32)
        for layer, pair in enumerate(pairs):
            if pair is not None:
                lora_a[layer, :, : pair.a.shape[0]] = pair.a.T
                lora_b[layer, : pair.a.shape[0]] = pair.b.T * (pair.scale * rank / self._alpha)
        return {"lora_a": lora_a, "lora_b": lora_b}

    def _read(self, settings: dict[str, Any], by_name: dict[str, Slot]) -> dict[str, _Pair]:
        source = Shards(self._path, single=WEIGHTS)
        halves: dict[str, dict[str, np.ndarray]] = {}
        for stored in source.shapes:
            match = re.fullmatch(r"(.*)\.lora_([AB])(?:\.default)?\.weight", stored)
            name = f"{match[1]}.weight" if match else stored
            if match is None or name not in by_name:
                raise UserError(
                    f"{self._path} has the tensor {short(stored)}, expected LoRA factors of linear layers of the "
                    f"{self._config.architecture} model; {_MERGE}"
                )
            halves.setdefault(name, {})[match[2]] = source.read(stored).astype(np.float32)
        return {name: self._pair(name, by_name[name], half, settings) for name, half in halves.items()}

    def _pair(self, name: str, slot: Slot, half: dict[str, np.ndarray], settings: dict[str, Any]) -> _Pair:
        if len(half) < 2:
            raise UserError(f"{self._path}: {name} has only one of its two LoRA factors")
        a, b = half["A"], half["B"]
        features, width = slot.shape
        module = name.removesuffix(".weight")
        rank = _by_pattern(self._path, settings, "rank_pattern", module, _positive(self._path, settings, "r"))
        if a.shape != (rank, width) or b.shape != (features, rank):
            raise UserError(
                f"{self._path}: the LoRA factors of {name} have shapes {list(a.shape)} and {list(b.shape)}, expected "
                f"[{rank:g}, {width}] and [{features}, {rank:g}]; is this the adapter's base model?"
            )
        alpha = _by_pattern(self._path, settings, "alpha_pattern", module, self._alpha)
        return _Pair(a, b, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _adaptable(slot: Slot) -> bool:
    """Whether a leaf is a kernel that is stored as one tensor per layer."""
    return slot.transposed and len(slot.stack) == 1 and slot.rows is None


def _check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        kind = short(repr(settings.get("peft_type")))
        raise UserError(f"{path / CONFIG}: peft_type={kind} is not supported, expected 'LORA'; {_MERGE}")
    for name, harmless in _HARMLESS.items():
        if settings.get(name) not in harmless:
            raise UserError(f"{path / CONFIG}: {name}={short(settings[name])} is not supported; {_MERGE}")


def _positive(path: pathlib.Path, settings: dict[str, Any], name: str) -> float:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise UserError(f"{path / CONFIG}: {name}={value!r}, expected a positive number")
    return value


def _by_pattern(path: pathlib.Path, settings: dict[str, Any], field: str, module: str, default: float) -> float:
    """PEFT's rule: the first pattern that ends the module's name."""
    patterns = settings.get(field) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{path / CONFIG}: {field} must be an object, found {type(patterns).__name__}")
    for pattern in patterns:
        # A pattern is a name in practice. PEFT would compile any regular expression that a file brings.
        if module == pattern or module.endswith(f".{pattern}"):
            return _positive(path, patterns, pattern)
    if any(not re.fullmatch(r"[\w.]+", str(pattern)) for pattern in patterns):
        raise UserError(f"{path / CONFIG}: {field} holds regular expressions, expected module names; {_MERGE}")
    return default
