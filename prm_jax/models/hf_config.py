"""``config.json`` of Hugging Face checkpoints, in and out; models that would be computed differently are refused."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from prm_jax.errors import UserError
from prm_jax.models.rope_scaling import RopeScaling

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ARCHITECTURES = tuple(_CLASSES)
# Read as Llama, with the attention window as context length: within the window the computation is the same.
_MISTRAL = "mistral"
_READABLE = {"MistralForCausalLM": _MISTRAL} | {name: key for key, name in _CLASSES.items()}
# Classes with an output head other than the vocabulary's: reward models, which prm_jax.prm reads.
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "RewardModel", "ForScore")
# What the class in the file assumes where a field is left out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    _MISTRAL: {"max_position_embeddings": 131072, "num_key_value_heads": 8},
}
_MISTRAL_WINDOW = 4096
# Fields that change the computation, with the values that leave it as it is.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None, []),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "attention_multiplier": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "moe_intermediate_size": (None, 0),
    "auto_map": (None, {}),
}
_ROPE_FIELDS = (
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "attention_factor",
    "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
)  # fmt: skip
_ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_FIELDS)
_ROPE_TOP = ("rope_theta", "rope_scaling", "rope_parameters", "rope_interleaved")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_MOST_LAYERS = 10_000
_MAX_WINDOW_LAYERS = 28  # layers before the first with a window, where the field is left out


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``ModelConfig``; see ``ModelConfig.from_hf``."""
    if not isinstance(config, Mapping):
        raise UserError(f"config.json: expected an object, found {type(config).__name__}")
    family = _family(config)
    for field, harmless in _HARMLESS.items():
        if field in config and config[field] not in harmless:
            _refuse(field, config[field], "expected " + " or ".join(repr(value) for value in harmless))
    given = {**_DEFAULTS[family], **{k: v for k, v in config.items() if v is not None}}
    context = _integer(given, "max_position_embeddings")
    windows: tuple[int | None, ...] = ()
    if family == _MISTRAL:
        context = min(context, _mistral_window(config, context))
    else:
        windows = _layer_windows(config, family, _integer(given, "num_hidden_layers"))
    architecture = "llama" if family == _MISTRAL else family
    num_heads = _integer(given, "num_attention_heads")
    hidden_size = _integer(given, "hidden_size")
    if "head_dim" not in given and hidden_size % num_heads:
        _refuse("hidden_size", hidden_size, f"not a multiple of num_attention_heads={num_heads}, and no head_dim")
    theta, scaling = _rope(given, sliding=any(windows))
    return dict(
        architecture=architecture,
        vocab_size=_integer(given, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(given, "intermediate_size"),
        num_layers=_integer(given, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(given, "num_key_value_heads", default=num_heads),
        head_dim=_integer(given, "head_dim", default=hidden_size // num_heads),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_number(given, "rms_norm_eps", default=1e-6),
        tie_word_embeddings=_boolean(given, "tie_word_embeddings"),
        qk_norm=architecture == "qwen3",
        attention_bias=family == "qwen2" or (family != _MISTRAL and _boolean(given, "attention_bias")),
        mlp_bias=family == "llama" and _boolean(given, "mlp_bias"),
        max_position_embeddings=context,
        layer_windows=windows,
    )


def write(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``read``; see ``ModelConfig.to_hf``."""
    out: dict[str, Any] = {
        "architectures": [_CLASSES[fields["architecture"]]],
        "model_type": fields["architecture"],
        "vocab_size": fields["vocab_size"],
        "hidden_size": fields["hidden_size"],
        "intermediate_size": fields["intermediate_size"],
        "num_hidden_layers": fields["num_layers"],
        "num_attention_heads": fields["num_heads"],
        "num_key_value_heads": fields["num_kv_heads"],
        "head_dim": fields["head_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": fields["rms_norm_eps"],
        "rope_theta": fields["rope_theta"],
        "rope_scaling": None,
        "max_position_embeddings": fields["max_position_embeddings"],
        "tie_word_embeddings": fields["tie_word_embeddings"],
        "attention_dropout": 0.0,
        "torch_dtype": fields["dtype"],
        "use_cache": True,
    }
    scaling: RopeScaling | None = fields["rope_scaling"]
    if scaling is not None:
        named = {name: getattr(scaling, name) for name in _rope_fields(scaling.kind)}
        out["rope_scaling"] = {"rope_type": scaling.kind} | {k: v for k, v in named.items() if v is not None}
    if fields["architecture"] != "qwen2":
        out["attention_bias"] = fields["attention_bias"]
    if fields["architecture"] == "llama":
        out["mlp_bias"] = fields["mlp_bias"]
    return out | _written_windows(fields)


def _family(config: Mapping[str, Any]) -> str:
    """A key of ``_DEFAULTS``."""
    classes = config.get("architectures")
    if classes:
        name = classes[0] if isinstance(classes, list) and len(classes) == 1 else None
        if not isinstance(name, str):
            _refuse("architectures", classes, "expected a list with one class name")
        if any(part in name for part in _CLASSIFIERS):
            _refuse(
                "architectures", classes,
                "a classification or reward model, not a language model; load it with prm_jax.prm, or give it to a "
                "command that takes a reward model, such as prm-jax score",
            )  # fmt: skip
        if name not in _READABLE:
            _refuse("architectures", classes, "expected one of " + ", ".join(_READABLE))
        return _READABLE[name]
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _DEFAULTS:
        _refuse("model_type", model_type, "and no architectures; expected one of " + ", ".join(_DEFAULTS))
    return model_type


def _mistral_window(config: Mapping[str, Any], context: int) -> int:
    """Tokens that attention reaches back; the class assumes a number where the field is left out."""
    if config.get("sliding_window", _MISTRAL_WINDOW) is None:
        return context
    return _integer(config, "sliding_window", default=_MISTRAL_WINDOW)


def _layer_windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """The attention window of every layer, () where no layer has one. Qwen's classes have windows, Llama's none."""
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if family == "llama":
        if kinds is not None and (not isinstance(kinds, list) or any(kind != _FULL for kind in kinds)):
            _refuse("layer_types", kinds, f"expected a list of {_FULL} only")
        if window is not None and kinds is None and config.get("use_sliding_window", True):
            _refuse("sliding_window", window, f"architecture {family!r} has no attention windows")
        return ()
    if kinds is None:
        first = _integer(config, "max_window_layers", default=_MAX_WINDOW_LAYERS, least=0)
        sliding = first < layers
    else:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_FULL, _SLIDING) for kind in kinds):
            _refuse("layer_types", kinds, f"expected a list of {_FULL} and {_SLIDING}, one per layer")
        sliding = _SLIDING in kinds
    if not config.get("use_sliding_window", False) or window is None or not sliding:
        return ()
    window = _integer(config, "sliding_window")
    if layers > _MOST_LAYERS:
        _refuse("num_hidden_layers", layers, f"expected at most {_MOST_LAYERS} layers with attention windows")
    kinds = kinds or [_FULL] * first + [_SLIDING] * (layers - first)
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _written_windows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Qwen model's attention windows; refuses what the family's class cannot compute."""
    windows = fields["layer_windows"] or (fields["sliding_window"],) * fields["num_layers"]
    sizes = {window for window in windows if window is not None}
    family = fields["architecture"]
    if fields["attn_softcap"] is not None or (sizes and family == "llama") or len(sizes) > 1:
        raise UserError(
            f"model config: config.json of architecture {family!r} cannot hold attn_softcap={fields['attn_softcap']} "
            f"with attention windows of {sorted(sizes)} tokens"
        )
    if not sizes:
        return {} if family == "llama" else {"use_sliding_window": False}
    first = next(i for i, window in enumerate(windows) if window is not None)
    kinds = [_FULL if window is None else _SLIDING for window in windows]
    return {
        "use_sliding_window": True, "sliding_window": sizes.pop(), "max_window_layers": first, "layer_types": kinds,
    }  # fmt: skip


def _rope(config: Mapping[str, Any], *, sliding: bool) -> tuple[float, RopeScaling | None]:
    """Both spellings: ``rope_theta`` with ``rope_scaling``, and the newer ``rope_parameters``."""
    for name in config:
        if str(name).startswith("rope") and name not in _ROPE_TOP:
            _refuse(str(name), config[name], _unknown(str(name), _ROPE_TOP))
    field = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(field) or {}
    if not isinstance(given, Mapping):
        _refuse(field, given, "expected an object")
    if sliding and given.get(_SLIDING, given.get(_FULL)) != given.get(_FULL):
        _refuse(f"{field}.{_SLIDING}", given[_SLIDING], f"expected the same parameters as in {_FULL}")
    field, given = _of_full_attention(field, given)
    for name in given:
        if name not in _ROPE_KEYS:
            _refuse(f"{field}.{name}", given[name], _unknown(str(name), _ROPE_KEYS))
    if field.startswith("rope_parameters") and "rope_theta" not in given and "rope_theta" not in config:
        _refuse(f"{field}.rope_theta", None, "it is missing")
    theta = _number(given if "rope_theta" in given else config, "rope_theta", default=10000.0)
    if theta <= 0:
        _refuse("rope_theta", theta, "expected a positive number")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        _refuse(f"{field}.partial_rotary_factor", given["partial_rotary_factor"], "expected 1.0")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        _refuse(f"{field}.rope_type", kind, "expected default, linear, dynamic, llama3 or yarn")
    return theta, RopeScaling(kind=kind, **_scaling_fields(config, field, given, kind))


def _of_full_attention(field: str, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The parameters themselves, where they are nested by layer type."""
    if not any(isinstance(value, Mapping) for value in given.values()):
        return field, given
    if not isinstance(given.get(_FULL), Mapping):
        _refuse(field, dict(given), f"nested by layer type, but {_FULL} is missing")
    flat = [name for name, value in given.items() if not isinstance(value, Mapping)]
    if flat:
        _refuse(f"{field}.{flat[0]}", given[flat[0]], "the other entries are nested by layer type")
    return f"{field}.{_FULL}", given[_FULL]


def _scaling_fields(config: Mapping[str, Any], field: str, given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    fields = {n: given[n] for n in _rope_fields(kind) if given.get(n) is not None}
    for name, value in fields.items():
        if name == "truncate":
            if not isinstance(value, bool):
                _refuse(f"{field}.{name}", value, "expected true or false")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            _refuse(f"{field}.{name}", value, "expected a number >= 0")
    original = fields.get("original_max_position_embeddings")
    if original is not None and (not isinstance(original, int) or original < 1):
        _refuse(f"{field}.original_max_position_embeddings", original, "expected a positive integer")
    if "factor" not in fields and kind == "yarn" and original:
        fields["factor"] = _integer(config, "max_position_embeddings") / original
    if "factor" not in fields:
        _refuse(f"{field}.factor", None, f"{kind} needs it")
    fields["factor"] = float(fields["factor"])
    return fields


def _rope_fields(kind: str) -> tuple[str, ...]:
    if kind in ("linear", "dynamic"):
        return ("factor",)
    if kind == "llama3":
        return _ROPE_FIELDS[:4]
    return _ROPE_FIELDS[:2] + _ROPE_FIELDS[4:]


def _integer(config: Mapping[str, Any], name: str, *, default: int | None = None, least: int = 1) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse(name, value, f"expected an integer >= {least}")
    return value


def _number(config: Mapping[str, Any], name: str, *, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, value, "expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _refuse(name, value, "expected a finite number")
    return number


def _boolean(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        _refuse(name, value, "expected true or false")
    return value


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known: {', '.join(known)}"


def _refuse(field: str, found: Any, why: str) -> NoReturn:
    shown = repr(found)
    shown = shown if len(shown) <= 200 else shown[:200] + "..."
    raise UserError(f"config.json: {field[:100]}={shown} is not supported: {why}")
