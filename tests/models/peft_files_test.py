"""LoRA adapter directories load merged or kept apart, with the numbers of PEFT's own formula."""

import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer, Tokenizer, load_weights, save_weights
from prm_jax.models.lora import split
from tests.compiled import token_logprobs
from tests.models.checkpoints import CONFIGS, random_params

CONFIG = CONFIGS["llama"]
TOKENS = jnp.array([[5, 6, 7, 8, 9, 10, 11]])
MODULES = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "mlp.down_proj": (32, 48)}  # [out, in]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("base") / "base"
    save_weights(path, CONFIG, random_params(CONFIG), tokenizer=CharTokenizer("0123"))
    return path


def write_adapter(directory: pathlib.Path, base: str, *, rank: int = 4, layers=(0, 1), **settings) -> pathlib.Path:
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in layers:
        for module, (out, width) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.normal(size=(rank, width)).astype(np.float32) * 0.2
            tensors[f"{name}.lora_B.weight"] = rng.normal(size=(out, rank)).astype(np.float32) * 0.2
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": 8, "bias": "none",
        "target_modules": [name.split(".")[1] for name in MODULES], "task_type": "CAUSAL_LM", "use_dora": False,
        "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, **settings,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def merged_by_hand(base: pathlib.Path, adapter: pathlib.Path, scale: float) -> dict[str, np.ndarray]:
    tensors = load_file(base / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    for name in [n for n in factors if ".lora_A." in n]:
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        tensors[target] = tensors[target] + scale * factors[name.replace("lora_A", "lora_B")] @ factors[name]
    return tensors


@pytest.mark.parametrize(("settings", "scale"), [({}, 2.0), ({"use_rslora": True}, 8 / math.sqrt(4))])
def test_merged_and_kept_are_the_same_model(base, tmp_path, settings, scale):
    adapter = write_adapter(tmp_path / "a", str(base), **settings)
    config, merged = load_weights(adapter)
    expected = merged_by_hand(base, adapter, scale)
    kernel = np.asarray(merged["layers"]["mlp"]["down"]["kernel"])
    np.testing.assert_allclose(kernel[1].T, expected["model.layers.1.mlp.down_proj.weight"], rtol=1e-6)
    kept_config, kept = load_weights(adapter, merge_adapters=False)
    assert kept_config.lora_alpha == 8.0
    assert set(split(kept)[1]["layers"]["attn"]) == {"q", "v"}
    logp = token_logprobs(config, merged, TOKENS)
    np.testing.assert_allclose(token_logprobs(kept_config, kept, TOKENS), logp, atol=1e-5)
    assert not np.allclose(token_logprobs(config, load_weights(base)[1], TOKENS), logp, atol=1e-3)


def test_layers_without_adapter_and_ranks_by_name(base, tmp_path):
    adapter = write_adapter(tmp_path / "a", str(base), layers=(1,))
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in [n for n in tensors if "down_proj" in n]:
        tensors[name] = tensors[name][:2] if "lora_A" in name else np.ascontiguousarray(tensors[name][:, :2])
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"mlp.down_proj": 3}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    config, merged = load_weights(adapter)
    kept_config, kept = load_weights(adapter, merge_adapters=False, host=True)
    assert not kept["layers"]["attn"]["q"]["lora_b"][0].any()
    logp = token_logprobs(config, merged, TOKENS)
    np.testing.assert_allclose(token_logprobs(kept_config, kept, TOKENS), logp, atol=1e-5)
    plain = np.asarray(load_weights(base)[1]["layers"]["mlp"]["down"]["kernel"])
    factors = {k.rsplit(".", 3)[-2]: v for k, v in tensors.items() if "down_proj" in k}
    delta = np.asarray(merged["layers"]["mlp"]["down"]["kernel"]) - plain
    np.testing.assert_allclose(delta[1].T, 1.5 * factors["lora_B"] @ factors["lora_A"], atol=1e-6)
    assert not delta[0].any()


def test_the_base_model_s_tokenizer_and_relative_paths(base, tmp_path):
    (tmp_path / "base").symlink_to(base)
    adapter = write_adapter(tmp_path / "a", "../base")
    assert Tokenizer.load(adapter).tokens == CharTokenizer("0123").tokens
    CharTokenizer("45").save(adapter)
    assert Tokenizer.load(adapter).tokens == CharTokenizer("45").tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ({"use_dora": True}, "use_dora=True is not supported; merge the adapter"),
        ({"bias": "all"}, "bias=all is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "r=0, expected a positive number"),
        ({"r": "4"}, "r='4', expected a positive number"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"rank_pattern": {".*(a+)+$": 2}}, "rank_pattern holds regular expressions"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path=None"),
        ({"base_model_name_or_path": "/no/such/base"}, "no weights at /no/such/base"),
        ({"r": 8}, r"shapes \[4, 48\] and \[32, 4\], expected \[8, 48\]"),
    ],
)
def test_refusals(base, tmp_path, settings, message):
    adapter = write_adapter(tmp_path / "a", str(base))
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(written | settings))
    with pytest.raises(UserError, match=message):
        load_weights(adapter)


def test_other_tensors(base, tmp_path):
    adapter = write_adapter(tmp_path / "a", str(base))
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 97), np.float32)}, file)
    with pytest.raises(UserError, match="has the tensor model.embed_tokens.lora_embedding_A, expected LoRA factors"):
        load_weights(adapter)
    save_file({name: t for name, t in tensors.items() if not name.endswith("0.mlp.down_proj.lora_B.weight")}, file)
    with pytest.raises(UserError, match="only one of its two"):
        load_weights(adapter)
    file.rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="expected adapter_model.safetensors; adapter_model.bin is a pickle"):
        load_weights(adapter)
