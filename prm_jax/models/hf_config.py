"""``config.json`` of Hugging Face checkpoints, in and out; models that would be computed differently are refused."""

from collections.abc import Mapping
from typing import Any

from prm_jax.errors import UserError
from prm_jax.models.families import FAMILIES, Family
from prm_jax.models.families.fields import boolean, integer, number, refuse
from prm_jax.models.families.rotary import read_rotary, written_rotary

# Classes with an output head other than the vocabulary's: reward models, which prm_jax.prm reads.
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "RewardModel", "ForScore")
# Fields that change the computation, with the values that leave it as it is; families name those that they read.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None, []),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "scale_emb": (None, 1, 1.0),
    "scale_depth": (None, 1, 1.0),
    "clip_qkv": (None, 0, 0.0),
    "attention_chunk_size": (None, 0),
    "use_bidirectional_attention": (None, False),
    "use_parallel_residual": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "moe_intermediate_size": (None, 0),
    "shared_expert_intermediate_size": (None, 0),
    "shared_intermediate_size": (None, 0),
    "auto_map": (None, {}),
}
_OPTIONAL: dict[str, Any] = {
    "sliding_window": None, "layer_windows": (), "attn_softcap": None, "logit_softcap": None, "attn_scale": None,
    "embed_scale": 1.0, "residual_scale": 1.0, "logit_divisor": 1.0, "rope_local_theta": None, "rotary_dim": None,
    "unrotated_layers": (), "norm_topk": True,
}  # fmt: skip
"""Fields of ``ModelConfig`` that not every family's ``config.json`` can hold, with their defaults."""


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``ModelConfig``; see ``ModelConfig.from_hf``."""
    if not isinstance(config, Mapping):
        raise UserError(f"config.json: expected an object, found {type(config).__name__}")
    family = _family(config)
    _check_known(config, family)
    given = {**family.defaults, **{k: v for k, v in config.items() if v is not None}}
    # A window that is null is none, whatever the class assumes where the field is left out.
    given |= {name: None for name in ("sliding_window",) if name in config and config[name] is None}
    num_heads = integer(given, "num_attention_heads")
    hidden_size = integer(given, "hidden_size")
    if "head_dim" not in given and hidden_size % num_heads:
        refuse("hidden_size", hidden_size, f"not a multiple of num_attention_heads={num_heads}, and no head_dim")
    head_dim = integer(given, "head_dim", default=hidden_size // num_heads)
    own = family.read(given)
    rotary = read_rotary(
        given, sliding=any(own.get("layer_windows", ())), local="rope_local_theta" in family.holds
    )
    if rotary.partial != 1 and "rotary_dim" not in family.holds:
        refuse("partial_rotary_factor", rotary.partial, "expected 1.0")
    if "rope_local_theta" in family.holds:
        own["rope_local_theta"] = rotary.local_theta
    bias = family.attention_bias == "always" or (family.attention_bias == "option" and boolean(given, "attention_bias"))
    return dict(
        architecture=family.name,
        vocab_size=integer(given, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=integer(given, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=integer(given, "num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        rope_theta=rotary.theta,
        rope_scaling=rotary.scaling,
        rotary_dim=None if rotary.partial == 1 else int(head_dim * rotary.partial),
        rms_norm_eps=number(given, "rms_norm_eps", default=1e-6),
        tie_word_embeddings=boolean(given, "tie_word_embeddings"),
        qk_norm=family.qk_norm is not None,
        attention_bias=bias,
        mlp_bias=family.mlp_bias and boolean(given, "mlp_bias"),
        max_position_embeddings=integer(given, "max_position_embeddings"),
        **{"intermediate_size": _width(given, own), **own},
    )


def write(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``read``; see ``ModelConfig.to_hf``."""
    family = FAMILIES[fields["architecture"]]
    fields = {**fields, "layer_windows": fields["layer_windows"] or _windows_of_all(fields, family)}
    _check_written(fields, family)
    out: dict[str, Any] = {
        "architectures": [family.classes[0]],
        "model_type": family.model_type,
        "vocab_size": fields["vocab_size"],
        "hidden_size": fields["hidden_size"],
        "intermediate_size": fields["intermediate_size"],
        "num_hidden_layers": fields["num_layers"],
        "num_attention_heads": fields["num_heads"],
        "num_key_value_heads": fields["num_kv_heads"],
        "head_dim": fields["head_dim"],
        family.activation_field: family.activations[0],
        "rms_norm_eps": fields["rms_norm_eps"],
        **written_rotary(fields["rope_theta"], fields["rope_scaling"]),
        "max_position_embeddings": fields["max_position_embeddings"],
        "tie_word_embeddings": fields["tie_word_embeddings"],
        "attention_dropout": 0.0,
        "pad_token_id": None,  # classes assume one, which a small vocabulary may not have
        "torch_dtype": fields["dtype"],
        "use_cache": True,
    }
    if family.attention_bias == "option":
        out["attention_bias"] = fields["attention_bias"]
    if family.mlp_bias:
        out["mlp_bias"] = fields["mlp_bias"]
    if fields["rotary_dim"] is not None:
        out["partial_rotary_factor"] = fields["rotary_dim"] / fields["head_dim"]
    return out | family.write(fields)


def _family(config: Mapping[str, Any]) -> Family:
    readable = {name: family for family in FAMILIES.values() for name in family.classes}
    classes = config.get("architectures")
    if classes:
        name = classes[0] if isinstance(classes, list) and len(classes) == 1 else None
        if not isinstance(name, str):
            refuse("architectures", classes, "expected a list with one class name")
        if any(part in name for part in _CLASSIFIERS):
            refuse(
                "architectures", classes,
                "a classification or reward model, not a language model; load it with prm_jax.prm, or give it to a "
                "command that takes a reward model, such as prm-jax score",
            )  # fmt: skip
        if name not in readable:
            refuse("architectures", classes, "expected one of " + ", ".join(readable))
        return readable[name]
    by_type = {family.model_type: family for family in FAMILIES.values()}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in by_type:
        refuse("model_type", model_type, "and no architectures; expected one of " + ", ".join(by_type))
    return by_type[model_type]


def _check_known(config: Mapping[str, Any], family: Family) -> None:
    """Refuses fields that the family does not read and that would change the computation."""
    for field, harmless in _HARMLESS.items():
        if field in config and field not in family.reads and config[field] not in harmless:
            refuse(field, config[field], "expected " + " or ".join(repr(value) for value in harmless))
    for field in ("hidden_act", "hidden_activation"):
        # Gemma's files carry both, and their class reads the second alone.
        if family.activation_field == "hidden_activation" and field == "hidden_act":
            continue
        allowed = family.activations if field == family.activation_field else (None, *family.activations)
        if field in config and config[field] not in allowed:
            refuse(field, config[field], "expected " + " or ".join(map(repr, allowed)))
    if family.experts is None and config.get("num_experts_per_tok") not in (None, 0, 1):
        refuse("num_experts_per_tok", config["num_experts_per_tok"], f"architecture {family.name!r} has no experts")


def _width(given: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Of the MLP; in sparse models the family reads the experts' width."""
    return own["intermediate_size"] if "intermediate_size" in own else integer(given, "intermediate_size")


def _windows_of_all(fields: Mapping[str, Any], family: Family) -> tuple[int | None, ...]:
    """One window for all layers, as a family that names windows by layer writes it."""
    if fields["sliding_window"] is None or "sliding_window" in family.holds:
        return ()
    return (fields["sliding_window"],) * fields["num_layers"]


def _check_written(fields: Mapping[str, Any], family: Family) -> None:
    """Refuses what the family's class cannot compute."""
    own = {name: value for name, value in fields.items() if name in _OPTIONAL and value != _OPTIONAL[name]}
    if "layer_windows" in family.holds:
        own.pop("sliding_window", None)
        sizes = {window for window in fields["layer_windows"] if window is not None}
        if len(sizes) > 1:
            raise UserError(
                f"model config: config.json of architecture {family.name!r} cannot hold attention windows of "
                f"{sorted(sizes)} tokens, only one size"
            )
    wrong = sorted(set(own) - set(family.holds))
    if wrong:
        listed = ", ".join(f"{name}={own[name]}" for name in wrong)
        raise UserError(f"model config: config.json of architecture {family.name!r} cannot hold {listed}")
