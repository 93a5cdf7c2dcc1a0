"""GGUF files of the families beyond Llama and Qwen, written here tensor by tensor under llama.cpp's names."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from prm_jax.errors import UserError
from prm_jax.models import load_weights, save_gguf, save_weights
from prm_jax.models.checkpoint_layout import leaves
from tests.models.checkpoints import FAMILIES, add_sizes, random_params

gguf = pytest.importorskip("gguf")

_PRE = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_SANDWICH = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_PROJECTIONS = {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}  # fmt: skip
_EXPERT = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


@dataclasses.dataclass(frozen=True)
class Form:
    """What a family's file holds besides what all have: architecture, norms, row order, metadata, and other tensors."""

    architecture: str
    norms: dict[str, str] = dataclasses.field(default_factory=lambda: _PRE)
    interleaved: bool = False
    offset: float = 0.0
    metadata: dict[str, object] = dataclasses.field(default_factory=dict)
    tensors: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def _plain_gemma(name: str, **changes):
    """Fields that GGUF files cannot hold at the values that llama.cpp assumes."""
    config = FAMILIES[name]
    return dataclasses.replace(config, attn_scale=config.head_dim**-0.5, **changes)


CONFIGS = {
    "gemma2": _plain_gemma("gemma2"),
    "gemma3": _plain_gemma("gemma3", num_layers=7, layer_windows=(5,) * 5 + (None, 5)),
    "olmo2": FAMILIES["olmo2"],
    "granite": dataclasses.replace(FAMILIES["granite"], mlp_bias=False, attention_bias=False),
    "smollm3": dataclasses.replace(FAMILIES["smollm3"], num_layers=4, unrotated_layers=(3,)),
    "phi3": FAMILIES["phi3"],
    "qwen3_moe": dataclasses.replace(FAMILIES["qwen3_moe"], norm_topk=True),
    "mixtral": FAMILIES["mixtral"],
}
FORMS = {
    "gemma2": Form(
        "gemma2", _SANDWICH, offset=1.0,
        metadata={
            "attention.sliding_window": 5, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": Form(
        "gemma3", _SANDWICH, offset=1.0,
        metadata={"attention.sliding_window": 5, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "olmo2": Form(
        "olmo2",
        {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    ),
    "granite": Form(
        "granite", interleaved=True,
        metadata={"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.2, "logit_scale": 4.0},
    ),
    "smollm3": Form("smollm3", interleaved=True),
    "phi3": Form(
        "phi3",
        metadata={
            "attention.sliding_window": 40, "rope.dimension_count": 6, "rope.scaling.original_context_length": 128,
        },
        tensors={"rope_factors_short.weight": [1.0, 1.5, 2.5], "rope_factors_long.weight": [2.0, 4.0, 8.0]},
    ),
    "qwen3_moe": Form(
        "qwen3moe", metadata={"expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 48},
    ),
    "mixtral": Form("llama", interleaved=True, metadata={"expert_count": 4, "expert_used_count": 2}),
}  # fmt: skip


def _add_vocabulary(writer, size: int) -> None:
    """Tokens that no text needs, without which llama.cpp refuses a file."""
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.BYTE]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", *(f"t{i}" for i in range(4, size))])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (size - 4)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(path, config, hf: dict[str, np.ndarray], form: Form, *, vocabulary: bool = False, **changes) -> None:
    """A GGUF file of Hugging Face tensors; ``changes`` to its metadata."""
    writer = gguf.GGUFWriter(path, form.architecture)
    add_sizes(writer, config)
    if vocabulary:
        _add_vocabulary(writer, config.vocab_size)
    for key, value in {**form.metadata, **changes}.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{form.architecture}.{key}", value)
    for name, values in form.tensors.items():
        writer.add_tensor(name, np.array(values, np.float32))
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in hf.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if found is None:
            own = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}.get(name, "output")
            shift = form.offset if "norm" in name else 0.0
            writer.add_tensor(f"{own}.weight", tensor + np.float32(shift))
            continue
        layer, module, kind = found.groups()
        expert = re.fullmatch(r".*experts\.(\d+)\.(\w+)", module)
        if expert:
            experts.setdefault(f"blk.{layer}.ffn_{_EXPERT[expert[2]]}_exps.weight", {})[int(expert[1])] = tensor
            continue
        if form.interleaved and module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = tensor.reshape(-1, 2, config.head_dim // 2, *tensor.shape[1:])
            tensor = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(tensor.shape)
        shift = form.offset if module.endswith("norm") else 0.0
        own = (_PROJECTIONS | form.norms)[module]
        writer.add_tensor(f"blk.{layer}.{own}.{kind}", tensor + np.float32(shift))
    for name, parts in experts.items():
        writer.add_tensor(name, np.stack([parts[e] for e in range(len(parts))]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _files(tmp_path, name, **changes):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    save_weights(tmp_path / "hf", config, params)
    write(tmp_path / "m.gguf", config, load_file(tmp_path / "hf" / "model.safetensors"), FORMS[name], **changes)
    return config, params, tmp_path / "m.gguf"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_read(tmp_path, name):
    config, params, path = _files(tmp_path, name)
    read, found = load_weights(path, host=True)
    assert read == config
    expected = leaves(params)
    assert leaves(found).keys() == expected.keys()
    for place, leaf in leaves(found).items():
        np.testing.assert_allclose(leaf, expected[place], rtol=0, atol=2e-7 * config.family.norm_offset)


def test_norms_and_row_order_are_written_back(tmp_path):
    for name in ("gemma2", "granite"):
        (tmp_path / name).mkdir()
        config, params, path = _files(tmp_path / name, name)
        save_gguf(tmp_path / name / "again.gguf", config, params, like=path, dtype="float32")
        assert load_weights(tmp_path / name / "again.gguf")[0] == config
        again = leaves(load_weights(tmp_path / name / "again.gguf", host=True)[1])
        for place, leaf in leaves(params).items():
            np.testing.assert_allclose(again[place], leaf, rtol=0, atol=2e-7 * config.family.norm_offset)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("olmo2", {"attention.sliding_window": 4096}, "olmo2.attention.sliding_window=4096 is not supported"),
        ("olmo2", {"expert_count": 8}, "olmo2.expert_count=8 is not supported"),
        ("qwen3_moe", {"expert_weights_scale": 2.5}, "qwen3moe.expert_weights_scale=2.5 is not supported"),
        ("mixtral", {"expert_count": 5}, "experts.4.w1|shape|missing"),
    ],
)
def test_variants_that_are_not_covered_are_refused_by_name(tmp_path, name, changes, message):
    path = _files(tmp_path, name, **changes)[2]
    with pytest.raises(UserError, match=message):
        load_weights(path)


def test_sparse_files_are_read_and_not_written(tmp_path):
    config, params, path = _files(tmp_path, "mixtral")
    with pytest.raises(UserError, match="GGUF files of mixtral models are read and not written"):
        save_gguf(tmp_path / "again.gguf", config, params, like=path)
