"""What distinguishes one family of decoders from another: the contents of a file of this folder."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Given = Mapping[str, Any]
"""A ``config.json`` with the defaults of its class."""
Fields = dict[str, Any]

PRE_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
"""Norms before attention and MLP."""


@dataclasses.dataclass(frozen=True)
class ExpertNames:
    """Tensors of a sparse layer in a Hugging Face file, below the layer; the inner ``{}`` stands for the expert."""

    router: str = "mlp.gate"
    gate: str = "mlp.experts.{}.gate_proj"
    up: str = "mlp.experts.{}.up_proj"
    down: str = "mlp.experts.{}.down_proj"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufForm:
    """How GGUF files hold a family.

    Attributes:
      architecture: ``general.architecture``.
      interleaved: rows of queries and keys are in the order for rotating adjacent features.
      keys: metadata that ``read`` interprets; any other one that would change the computation is refused.
      read: from metadata by key, and the fields of ``config.json`` that all families have, to further fields.
    """

    architecture: str
    interleaved: bool = False
    keys: tuple[str, ...] = ()
    read: Callable[[Given], Fields] = lambda given: {}


def _nothing(config: Given) -> Fields:
    del config
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: how its files describe it, and the switches of its computation that no file can change.

    Attributes:
      name: ``ModelConfig.architecture``.
      classes: names in ``architectures``, the written one first.
      model_type: in ``config.json``.
      defaults: what the class assumes where a field is missing.
      reads: fields beyond those of all families that ``read`` interprets; any other one that would change the
        computation is refused.
      read: from a ``config.json`` to fields of ``ModelConfig`` beyond those of all families.
      write: the inverse, from the fields of ``ModelConfig``.
      holds: fields of ``ModelConfig`` that ``write`` can express; they are at their defaults in other families.
      activations: accepted names of the MLP's activation, the written one first.
      activation_field: what that field is called.
      activation: of the MLP's gate.
      norms: parameter -> tensor of the norms around attention and MLP, among ``attn_norm``, ``attn_post_norm``,
        ``mlp_norm`` and ``mlp_post_norm``.
      norm_offset: added to the scale of every norm.
      qk_norm: what the norms of queries and keys span: a "head", all heads ("width"), or None for no such norms.
      attention_bias: "never", "always", or "option" where the file says so.
      out_bias: whether the attention's output projection has a bias when the others do.
      mlp_bias: whether the file may ask for biases in the MLP.
      fused: tensor -> the projections that it holds, one after the other.
      experts: tensors of sparse layers, or None.
      gguf: how GGUF files hold the family, or None if they are not read.
    """

    name: str
    classes: tuple[str, ...]
    model_type: str
    defaults: Mapping[str, Any]
    reads: tuple[str, ...] = ()
    read: Callable[[Given], Fields] = _nothing
    write: Callable[[Given], Fields] = _nothing
    holds: tuple[str, ...] = ()
    activations: tuple[str, ...] = ("silu", "swish")
    activation_field: str = "hidden_act"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norms: Mapping[str, str] = dataclasses.field(default_factory=lambda: PRE_NORMS)
    norm_offset: float = 0.0
    qk_norm: Literal["head", "width"] | None = None
    attention_bias: Literal["never", "option", "always"] = "option"
    out_bias: bool = True
    mlp_bias: bool = False
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    experts: ExpertNames | None = None
    gguf: GgufForm | None = None
