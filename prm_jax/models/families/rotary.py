"""Rotary fields of a ``config.json``: ``rope_theta`` with ``rope_scaling``, and the newer ``rope_parameters``."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from prm_jax.models.families.fields import integer, number, refuse, unknown
from prm_jax.models.families.windows import FULL, SLIDING
from prm_jax.models.rope_scaling import RopeScaling

_FIELDS = (
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "attention_factor",
    "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
)  # fmt: skip
_TOP = ("rope_theta", "rope_scaling", "rope_parameters", "rope_interleaved", "rope_local_base_freq")


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary fields.

    Attributes:
      theta: base of the frequencies.
      scaling: of the frequencies, or None.
      local_theta: base in layers with a window, where it is given.
      partial: share of a head's features that are rotated.
    """

    theta: float
    scaling: RopeScaling | None
    local_theta: float | None
    partial: float


def read_rotary(config: Mapping[str, Any], *, sliding: bool, local: bool) -> Rotary:
    """Reads both spellings.

    Args:
      config: a ``config.json`` with the defaults of its class.
      sliding: whether any layer has a window.
      local: whether the family has frequencies of their own in layers with a window.
    """
    for name in config:
        if str(name).startswith("rope") and name not in _TOP:
            refuse(str(name), config[name], unknown(str(name), _TOP))
    field = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(field) or {}
    if not isinstance(given, Mapping):
        refuse(field, given, "expected an object")
    local_theta = _local_theta(config, field, given) if local else None
    if not local and sliding and given.get(SLIDING, given.get(FULL)) != given.get(FULL):
        refuse(f"{field}.{SLIDING}", given[SLIDING], f"expected the same parameters as in {FULL}")
    field, given = _of_full_attention(field, given)
    theta = _theta(config, field, given)
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    numeric = isinstance(partial, int | float) and not isinstance(partial, bool)
    if partial is not None and not (numeric and 0 < partial <= 1):
        refuse(f"{field}.partial_rotary_factor", partial, "expected a number in (0, 1]")
    return Rotary(theta, _scaling(config, field, given), local_theta, float(partial or 1.0))


def written_rotary(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``."""
    if scaling is None:
        return {"rope_theta": theta, "rope_scaling": None}
    named = {name: getattr(scaling, name) for name in _scaling_fields(scaling.kind)}
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in named.items() if v is not None}
    return {"rope_theta": theta, "rope_scaling": {"rope_type": scaling.kind} | kept}


def _theta(config: Mapping[str, Any], field: str, given: Mapping[str, Any]) -> float:
    kind = given.get("rope_type", given.get("type", "default"))
    known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *_FIELDS, "short_factor", "long_factor")
    for name in given:
        if name not in known or (name in ("short_factor", "long_factor") and kind not in ("longrope", "su")):
            refuse(f"{field}.{name}", given[name], unknown(str(name), known))
    if field.startswith("rope_parameters") and "rope_theta" not in given and "rope_theta" not in config:
        refuse(f"{field}.rope_theta", None, "it is missing")
    return number(given if "rope_theta" in given else config, "rope_theta", default=10000.0, positive=True)


def _local_theta(config: Mapping[str, Any], field: str, given: Mapping[str, Any]) -> float | None:
    """The base in layers with a window, from either spelling."""
    nested = given.get(SLIDING)
    if nested is None:
        return number(config, "rope_local_base_freq", positive=True) if "rope_local_base_freq" in config else None
    if not isinstance(nested, Mapping) or set(nested) - {"rope_type", "rope_theta"} or (
        nested.get("rope_type", "default") != "default"
    ):
        refuse(f"{field}.{SLIDING}", nested, "expected rope_theta alone: these layers have no rotary scaling")
    return number({**config, **nested}, "rope_theta", positive=True)


def _of_full_attention(field: str, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The parameters themselves, where they are nested by layer type."""
    if not any(isinstance(value, Mapping) for value in given.values()):
        return field, given
    if not isinstance(given.get(FULL), Mapping):
        refuse(field, dict(given), f"nested by layer type, but {FULL} is missing")
    flat = [name for name, value in given.items() if not isinstance(value, Mapping)]
    if flat:
        refuse(f"{field}.{flat[0]}", given[flat[0]], "the other entries are nested by layer type")
    return f"{field}.{FULL}", given[FULL]


def _scaling(config: Mapping[str, Any], field: str, given: Mapping[str, Any]) -> RopeScaling | None:
    kind = given.get("rope_type", given.get("type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic", "llama3", "yarn", "longrope"):
        refuse(f"{field}.rope_type", kind, "expected default, linear, dynamic, llama3, yarn or longrope")
    fields = {n: given[n] for n in _scaling_fields(kind) if given.get(n) is not None}
    for name, value in fields.items():
        _check(f"{field}.{name}", name, value)
    if kind == "longrope":
        fields = {"original_max_position_embeddings": config.get("original_max_position_embeddings"), **fields}
        fields |= {name: tuple(fields[name]) for name in ("short_factor", "long_factor") if name in fields}
    original = fields.get("original_max_position_embeddings")
    if original is not None and (isinstance(original, bool) or not isinstance(original, int) or original < 1):
        refuse(f"{field}.original_max_position_embeddings", original, "expected a positive integer")
    if "factor" not in fields and kind in ("yarn", "longrope") and original:
        fields["factor"] = integer(config, "max_position_embeddings") / original
    if "factor" not in fields:
        refuse(f"{field}.factor", None, f"{kind} needs it")
    fields["factor"] = float(fields["factor"])
    return RopeScaling(kind=kind, **fields)  # type: ignore[arg-type]


def _check(field: str, name: str, value: Any) -> None:
    if name == "truncate":
        if not isinstance(value, bool):
            refuse(field, value, "expected true or false")
        return
    values = value if name in ("short_factor", "long_factor") else [value]
    if not isinstance(values, list) or any(
        isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one < math.inf for one in values
    ):
        refuse(field, value, "expected a list of numbers >= 0" if values is value else "expected a number >= 0")


def _scaling_fields(kind: str) -> tuple[str, ...]:
    if kind in ("linear", "dynamic"):
        return ("factor",)
    if kind == "llama3":
        return _FIELDS[:4]
    if kind == "longrope":
        return ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor")
    return _FIELDS[:2] + _FIELDS[4:]
