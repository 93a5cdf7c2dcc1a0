"""Random small checkpoints of each family through ``transformers``: same logits, each reads what the other writes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import CharTokenizer, Tokenizer, hidden_states, load_weights, logits, save_weights
from prm_jax.models.rope_scaling import RopeScaling
from tests.models.checkpoints import CONFIGS, FAMILIES, random_params, same_bits

pytestmark = pytest.mark.optional

torch = pytest.importorskip("torch", reason="pip install torch transformers")
transformers = pytest.importorskip("transformers", reason="pip install torch transformers")

# Rows longer than the context that the scalings start from, so that they act.
LENGTH = 100
LINEAR = RopeScaling(kind="linear", factor=2.0)
YARN = RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=32)
MODELS = {
    "llama with llama3 rope": CONFIGS["llama"],
    "llama with biases": CONFIGS["llama_biased"],
    "llama with linear rope": dataclasses.replace(CONFIGS["llama"], rope_scaling=LINEAR),
    "qwen2, tied": CONFIGS["qwen2"],
    "qwen2 with yarn": dataclasses.replace(CONFIGS["qwen2"], rope_scaling=YARN, tie_word_embeddings=False),
    "qwen3": CONFIGS["qwen3"],
    **FAMILIES,
}


def our_logits(config, params, tokens: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(logits(config, params, hidden_states(config, params, jnp.asarray(tokens))))


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, (3, LENGTH))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_ours(tmp_path, tokens, name, record_property):
    config, params = MODELS[name], random_params(MODELS[name])
    save_weights(tmp_path / "m", config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours, theirs = our_logits(config, params, tokens), their_logits(model, tokens)
    error = float(np.abs(ours - theirs).max())
    record_property("max_error", error)
    print(f"\n{name}: logits in +-{np.abs(theirs).max():.1f}, largest difference {error:.1e}")
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_we_read_theirs(tmp_path, tokens, name, dtype):
    config = dataclasses.replace(MODELS[name], dtype=dtype)
    save_weights(tmp_path / "ours", config, random_params(config, dtype=dtype))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    read, params = load_weights(tmp_path / "theirs")
    assert read == config
    assert same_bits(params, random_params(config, dtype=dtype))


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_a_checkpoint_that_is_theirs_alone(tmp_path, tokens, family):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight", "layernorm.weight")):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        our_logits(*load_weights(tmp_path), tokens), their_logits(model, tokens), rtol=0, atol=1e-4
    )


def test_transformers_reads_our_character_tokenizer(tmp_path):
    config = dataclasses.replace(CONFIGS["llama"], vocab_size=13)
    ours = CharTokenizer("0123456789", chat_template="{{ bos_token }}{{ messages[0].content }}")
    save_weights(tmp_path / "m", config, random_params(config), tokenizer=ours)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs("0421", add_special_tokens=False)["input_ids"] == ours.encode("0421")
    assert theirs("0421")["input_ids"] == ours.encode("0421", add_special=True)
    assert theirs.decode(ours.encode("0421")) == "0421"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    messages = [{"role": "user", "content": "12"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == ours.render_chat(messages)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "m")
    assert generation.eos_token_id == [2]


def test_transformers_reads_smollm2_as_we_do(tmp_path):
    from prm_jax.models import find_smollm2
    from tests.models.smollm2_test import CASES

    try:
        tokenizer = Tokenizer.load(find_smollm2())
    except ImportError as error:
        pytest.skip(str(error))
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for case in CASES:
        assert theirs(case["text"])["input_ids"] == case["token_ids"]
        assert theirs.decode(case["token_ids"]) == case["text"]
    messages = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]
    for prompt in (False, True):
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert rendered == tokenizer.render_chat(messages, add_generation_prompt=prompt)
    theirs.save_pretrained(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    assert json.loads(again.to_json())["model"]["type"] == "BPE"
