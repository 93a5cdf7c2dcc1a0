"""Adapters in PEFT's format and GGUF files: what is written is read back."""

import dataclasses

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, LoRAConfig, dequantized, init_lora, join, load_weights, merge, save_weights
from prm_jax.models.checkpoint_layout import leaves
from prm_jax.models.gguf import read_gguf, read_raw_metadata
from prm_jax.models.gguf_export import save_gguf
from prm_jax.models.peft_export import save_adapter
from tests.models.checkpoints import CONFIGS, random_params, write_gguf

PLAIN = {name: dataclasses.replace(config, rope_scaling=None) for name, config in CONFIGS.items()}


def close(a, b, **tolerance):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], err_msg=".".join(path), **tolerance)


def adapted(config, targets=("q", "down")):
    params = random_params(config)
    lora = LoRAConfig(rank=3, alpha=config.lora_alpha, targets=targets)
    adapters = init_lora(config, params, jax.random.key(0), lora)
    filled = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 10, adapters)
    return params, join(params, filled)


def test_an_adapter_is_read_back(tmp_path):
    config = CONFIGS["llama"]
    params, whole = adapted(config)
    save_weights(tmp_path / "base", config, params, tokenizer=CharTokenizer("0123"))
    save_adapter(tmp_path / "policy-1", config, whole, base=str(tmp_path / "base"))
    _, back = load_weights(tmp_path / "policy-1")
    close(back, merge(config, whole), rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "policy-1"]  # no temporary directory is left
    with pytest.raises(UserError, match="policy-1 exists"):
        save_adapter(tmp_path / "policy-1", config, whole)
    with pytest.raises(UserError, match="no LoRA adapters"):
        save_adapter(tmp_path / "policy-2", config, params)


@pytest.mark.parametrize(("dtype", "error"), [("q8_0", 0.01), ("q4_0", 0.25)])
def test_a_gguf_file_in_blocks_is_read_back(tmp_path, dtype, error):
    config = dataclasses.replace(PLAIN["llama"], intermediate_size=64)
    params = random_params(config)
    write_gguf(tmp_path / "like.gguf", config, params)
    save_gguf(tmp_path / "m.gguf", config, params, like=tmp_path / "like.gguf", dtype=dtype)
    _, kept = load_weights(tmp_path / "m.gguf", keep_quantized=True)
    assert kept["layers"]["mlp"]["down"]["kernel"].bits == int(dtype[1])
    assert kept["embed"]["embedding"].bits == 8
    close(dequantized(kept), params, rtol=0, atol=error)
    odd = PLAIN["llama"]
    write_gguf(tmp_path / "odd.gguf", odd, random_params(odd))
    with pytest.raises(UserError, match="blocks of 32 inputs, which do not divide the 48 of blk.0.ffn_down.weight"):
        save_gguf(tmp_path / "m.gguf", odd, random_params(odd), like=tmp_path / "odd.gguf", dtype=dtype)


@pytest.mark.parametrize("family", PLAIN)
def test_a_gguf_file_is_read_back(tmp_path, family):
    config = PLAIN[family]
    params, others = random_params(config), random_params(config, seed=1)
    write_gguf(tmp_path / "like.gguf", config, params)
    save_gguf(tmp_path / "out" / "m.gguf", config, others, like=tmp_path / "like.gguf", dtype="float32")
    read, back = load_weights(tmp_path / "out" / "m.gguf")
    assert read == config
    close(back, others, rtol=0, atol=0)
    save_gguf(tmp_path / "out" / "m.gguf", config, others, like=tmp_path / "like.gguf")
    close(load_weights(tmp_path / "out" / "m.gguf", dtype="float32")[1], others, rtol=1e-3, atol=1e-3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]


def test_a_quantised_file_gives_its_metadata(tmp_path):
    config = dataclasses.replace(PLAIN["llama"], intermediate_size=64)
    like = tmp_path / "like.gguf"
    write_gguf(like, config, random_params(config), kind="Q4_1", metadata={"general.file_type": 3})
    save_gguf(tmp_path / "m.gguf", config, random_params(config, seed=1), like=like, dtype="float32")
    file = read_gguf(tmp_path / "m.gguf")
    assert file.metadata["general.file_type"] == 0 and {info.kind for info in file.tensors.values()} == {0}
    own, theirs = read_raw_metadata(like), read_raw_metadata(tmp_path / "m.gguf")
    assert [key for key in own if theirs.get(key) != own[key]] == ["general.file_type"]
    close(load_weights(tmp_path / "m.gguf")[1], random_params(config, seed=1), rtol=0, atol=0)


def test_another_model_is_no_template(tmp_path):
    config = PLAIN["llama"]
    write_gguf(tmp_path / "like.gguf", config, random_params(config))
    other = dataclasses.replace(config, num_layers=3)
    with pytest.raises(UserError, match="another model: its num_layers is 2, the parameters' 3"):
        save_gguf(tmp_path / "m.gguf", other, random_params(other), like=tmp_path / "like.gguf")
    assert not (tmp_path / "m.gguf").exists()
