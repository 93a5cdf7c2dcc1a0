"""``config.json`` of Hugging Face checkpoints, in and out; what this package does not compute is refused."""

from collections.abc import Mapping
from typing import Any, NoReturn

from prm_jax.errors import UserError
from prm_jax.models.rope_scaling import RopeScaling

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ARCHITECTURES = tuple(_CLASSES)

# What the class in the file assumes where a field is left out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
# Fields that change the computation, and the values under which they do not.
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


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``ModelConfig``; see ``ModelConfig.from_hf``."""
    if not isinstance(config, Mapping):
        raise UserError(f"config.json: expected an object, found {type(config).__name__}")
    architecture = _architecture(config)
    for field, harmless in _HARMLESS.items():
        if field in config and config[field] not in harmless:
            _refuse(field, config[field], "expected " + " or ".join(repr(value) for value in harmless))
    _refuse_sliding_window(config, architecture)
    given = {**_DEFAULTS[architecture], **{k: v for k, v in config.items() if v is not None}}
    num_heads = _integer(given, "num_attention_heads")
    hidden_size = _integer(given, "hidden_size")
    if "head_dim" not in given and hidden_size % num_heads:
        _refuse("hidden_size", hidden_size, f"no multiple of num_attention_heads={num_heads}, and no head_dim")
    theta, scaling = _rope(given)
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
        attention_bias=architecture == "qwen2" or _boolean(given, "attention_bias"),
        mlp_bias=architecture == "llama" and _boolean(given, "mlp_bias"),
        max_position_embeddings=_integer(given, "max_position_embeddings"),
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
    else:
        out["use_sliding_window"] = False
    return out


def _architecture(config: Mapping[str, Any]) -> str:
    by_class = {name: key for key, name in _CLASSES.items()}
    classes = config.get("architectures")
    if classes:
        if not isinstance(classes, list) or len(classes) != 1 or classes[0] not in by_class:
            _refuse("architectures", classes, "expected one of " + ", ".join(by_class))
        return by_class[classes[0]]
    model_type = config.get("model_type")
    if model_type not in _CLASSES:
        _refuse("model_type", model_type, "and no architectures; expected one of " + ", ".join(_CLASSES))
    return str(model_type)


def _refuse_sliding_window(config: Mapping[str, Any], architecture: str) -> None:
    kinds = config.get("layer_types")
    if kinds is not None and any(kind != "full_attention" for kind in kinds):
        other = sorted({str(kind) for kind in kinds} - {"full_attention"})
        _refuse("layer_types", other, "only full_attention is supported")
    window = config.get("sliding_window")
    if window is None or kinds is not None:
        return
    # Qwen's classes leave the window off unless told; elsewhere its presence is taken at its word.
    if not config.get("use_sliding_window", architecture == "llama"):
        return
    first = config.get("max_window_layers")
    if architecture == "llama" or first is None or first < config.get("num_hidden_layers", 0):
        _refuse("sliding_window", window, "sliding-window attention is not supported")


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Both spellings: ``rope_theta`` with ``rope_scaling``, and the newer ``rope_parameters``."""
    field = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(field) or {}
    if not isinstance(given, Mapping):
        _refuse(field, given, "expected an object")
    theta = _number(given if "rope_theta" in given else config, "rope_theta", default=10000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        _refuse(f"{field}.partial_rotary_factor", given["partial_rotary_factor"], "expected 1.0")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        _refuse(f"{field}.rope_type", kind, "expected default, linear, dynamic, llama3 or yarn")
    fields = {n: given[n] for n in _rope_fields(kind) if given.get(n) is not None}
    original = fields.get("original_max_position_embeddings")
    if "factor" not in fields and kind == "yarn" and original:
        fields["factor"] = _integer(config, "max_position_embeddings") / original
    if "factor" not in fields:
        _refuse(f"{field}.factor", None, f"{kind} needs it")
    for name, value in fields.items():
        if not isinstance(value, int | float):
            _refuse(f"{field}.{name}", value, "expected a number")
    fields["factor"] = float(fields["factor"])
    return theta, RopeScaling(kind=kind, **fields)


def _rope_fields(kind: str) -> tuple[str, ...]:
    if kind in ("linear", "dynamic"):
        return ("factor",)
    if kind == "llama3":
        return _ROPE_FIELDS[:4]
    return _ROPE_FIELDS[:2] + _ROPE_FIELDS[4:]


def _integer(config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(name, value, "expected an integer")
    return value


def _number(config: Mapping[str, Any], name: str, *, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, value, "expected a number")
    return float(value)


def _boolean(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        _refuse(name, value, "expected true or false")
    return value


def _refuse(field: str, found: Any, why: str) -> NoReturn:
    raise UserError(f"config.json: {field}={found!r} is not supported: {why}")
