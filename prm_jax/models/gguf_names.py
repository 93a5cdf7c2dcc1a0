"""Names of tensors in GGUF files and in Hugging Face files, by family."""

import dataclasses
import re

from prm_jax.models.families import Family

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {
    "attn_norm": "attn_norm", "post_attention_norm": "attn_post_norm", "ffn_norm": "mlp_norm",
    "post_ffw_norm": "mlp_post_norm",
}  # fmt: skip
_EXPERTS = {"ffn_gate_exps": "gate", "ffn_up_exps": "up", "ffn_down_exps": "down"}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor is in a GGUF file: its name, and its place on the first axis of one that holds all experts."""

    name: str
    expert: int | None = None


def in_layer(family: Family) -> dict[str, str]:
    """Names below a layer, experts aside: GGUF -> Hugging Face."""
    found = _IN_LAYER | {own: family.norms[norm] for own, norm in _NORMS.items() if norm in family.norms}
    if "mlp.gate_up_proj" in family.fused:
        found["ffn_up"] = "mlp.gate_up_proj"
    if family.experts is not None:
        found["ffn_gate_inp"] = family.experts.router
    return found


def hf_names(family: Family, name: str, experts: int) -> dict[str, Stored]:
    """Hugging Face names of what a tensor of a GGUF file holds; its own name where it has none."""
    if name in _WHOLE:
        return {_WHOLE[name]: Stored(name)}
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        return {name: Stored(name)}
    layer = f"model.layers.{int(match[1])}"
    if family.experts is not None and match[2] in _EXPERTS:
        inner = getattr(family.experts, _EXPERTS[match[2]])
        return {f"{layer}.{inner.format(e)}.{match[3]}": Stored(name, e) for e in range(experts)}
    known = in_layer(family)
    return {f"{layer}.{known[match[2]]}.{match[3]}" if match[2] in known else name: Stored(name)}


def gguf_name(family: Family, name: str) -> str:
    """What a tensor with a Hugging Face name is called in GGUF files; not of experts.

    Raises:
      KeyError: it has no such name.
    """
    for own, theirs in _WHOLE.items():
        if theirs == name:
            return own
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    names = {theirs: own for own, theirs in in_layer(family).items()}
    if match is None or match[2] not in names:
        raise KeyError(name)
    return f"blk.{match[1]}.{names[match[2]]}.{match[3]}"
