"""Writes LoRA adapters in the PEFT library's format, for servers and other libraries that load them."""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.checkpoint_layout import leaves, slots
from prm_jax.models.config import ModelConfig
from prm_jax.models.files import beside, sync_directory, write_json
from prm_jax.models.lora import split
from prm_jax.models.peft_files import CONFIG, WEIGHTS


def save_adapter(path: str | pathlib.Path, config: ModelConfig, params: Mapping[str, Any], *, base: str = "") -> None:
    """Writes the adapters of a model as a directory that PEFT, vLLM, SGLang and ``load_weights`` read.

    The directory is written under a temporary name and then renamed, so that a reader sees all of it or nothing.

    Args:
      path: the directory to create; it must not exist.
      config: the model; gives `lora_alpha`.
      params: a tree with adapters, with or without the kernels that they adapt; arrays of NumPy or JAX.
      base: path or name of the base model, recorded for whoever loads the adapter without naming one.

    Raises:
      UserError: the tree has no adapters, `path` exists, or a write fails.
    """
    path = pathlib.Path(path)
    _, adapters = split(dict(params))
    found = leaves(adapters)
    if not found:
        raise UserError(
            "the parameters have no LoRA adapters to export: train with --model.lora-rank, or export whole weights"
        )
    if path.exists():
        raise UserError(f"{path} exists: give another path for the adapter")
    tensors: dict[str, np.ndarray] = {}
    targets: set[str] = set()
    rank = 0
    for slot in slots(config):
        place = slot.path[:-1]
        if (*place, "lora_a") not in found:
            continue
        if slot.rows is not None:
            raise UserError(
                f"files of architecture {config.architecture} hold several projections in one tensor, {slot.name}, for "
                "which PEFT has no separate adapters: merge them and save whole weights (save_weights)"
            )
        lora_a, lora_b = (np.asarray(found[(*place, name)], np.float32) for name in ("lora_a", "lora_b"))
        rank = lora_a.shape[-1]
        for layer, name in enumerate(slot.names):
            module = name.removesuffix(".weight")
            targets.add(module.rpartition(".")[2])
            tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(lora_a[layer].T)
            tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(lora_b[layer].T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    _write(path, tensors, settings)


def _write(path: pathlib.Path, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = beside(path, "new")
        new.mkdir()
        try:
            save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
            write_json(new / CONFIG, settings)
            sync_directory(new)
            os.rename(new, path)
            sync_directory(path.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the adapter {path}: {error}") from error
