import dataclasses
import pathlib
import subprocess
import sys

import pytest

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, RopeScaling

# The fields that decide something in published config.json files of each family.
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
    "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "vocab_size": 128256,
}  # fmt: skip
QWEN2_5_MATH_1_5B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 1536,
    "intermediate_size": 8960, "max_position_embeddings": 4096, "max_window_layers": 21, "model_type": "qwen2",
    "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": True, "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
PUBLISHED = {"smollm2": SMOLLM2_135M, "llama3.2": LLAMA_3_2_1B, "qwen2.5": QWEN2_5_MATH_1_5B, "qwen3": QWEN3_0_6B}


def test_smollm2():
    assert ModelConfig.from_hf(SMOLLM2_135M) == ModelConfig(
        architecture="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30,
        num_heads=9, num_kv_heads=3, head_dim=64, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
        max_position_embeddings=8192,
    )  # fmt: skip


def test_families_differ_where_they_should():
    llama, qwen2, qwen3 = (ModelConfig.from_hf(PUBLISHED[name]) for name in ("llama3.2", "qwen2.5", "qwen3"))
    assert llama.rope_scaling == RopeScaling(kind="llama3", factor=32.0, original_max_position_embeddings=8192)
    assert (qwen2.attention_bias, qwen2.out_bias, qwen2.qk_norm, qwen2.head_dim) == (True, False, False, 128)
    assert (qwen3.attention_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    biased = ModelConfig.from_hf({**LLAMA_3_2_1B, "attention_bias": True, "mlp_bias": True})
    assert biased.attention_bias and biased.out_bias and biased.mlp_bias


@pytest.mark.parametrize("name", PUBLISHED)
def test_round_trip(name):
    config = ModelConfig.from_hf(PUBLISHED[name])
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert hash(config) == hash(ModelConfig.from_hf(config.to_hf()))


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 16.0},
        {"rope_type": "yarn", "factor": 4, "attention_factor": 1.1, "truncate": False},
    ],
)
def test_rotary_scalings_round_trip(scaling):
    config = ModelConfig.from_hf({**QWEN3_0_6B, "rope_scaling": scaling})
    assert config.rope_scaling is not None and config.rope_scaling.factor == scaling["factor"]
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_the_newer_spelling_of_rotary_fields():
    old = {**LLAMA_3_2_1B}
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": old["rope_theta"], **old["rope_scaling"]}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(old)
    plain = {**new, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert ModelConfig.from_hf(plain).rope_theta == 1e6 and ModelConfig.from_hf(plain).rope_scaling is None


def test_defaults_of_the_classes():
    bare = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1}
    llama = ModelConfig.from_hf({**bare, "model_type": "llama", "num_attention_heads": 4})
    assert (llama.num_kv_heads, llama.head_dim, llama.max_position_embeddings) == (4, 8, 2048)
    assert (llama.rms_norm_eps, llama.rope_theta, llama.tie_word_embeddings) == (1e-6, 1e4, False)
    qwen3 = ModelConfig.from_hf({**bare, "model_type": "qwen3", "num_attention_heads": 32})
    assert (qwen3.num_kv_heads, qwen3.head_dim, qwen3.max_position_embeddings) == (32, 128, 32768)


REFUSED = {
    "architectures": ["GPTNeoXForCausalLM"],
    "num_attention_heads": 0,
    "num_key_value_heads": -8,
    "hidden_act": "gelu",
    "pretraining_tp": 2,
    "partial_rotary_factor": 0.5,
    "rope_interleaved": True,
    "no_rope_layers": [1, 1, 1, 0],
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "embedding_multiplier": 12.0,
    "quantization_config": {"quant_method": "fp8"},
    "num_local_experts": 8,
    "num_experts": 64,
    "is_encoder_decoder": True,
    "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    "sliding_window": 4096,
    "layer_types": ["full_attention", "sliding_attention"],
    "vocab_size": None,
    "hidden_size": "2048",
    "num_hidden_layers": 16.0,
    "tie_word_embeddings": "yes",
    "rms_norm_eps": "1e-5",
    "rope_scaling": {"rope_type": "longrope", "factor": 2.0},
}


@pytest.mark.parametrize("field", REFUSED)
def test_unsupported_fields_are_refused_by_name(field):
    with pytest.raises(UserError, match=field):
        ModelConfig.from_hf({**LLAMA_3_2_1B, field: REFUSED[field]})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn"}, "rope_scaling.factor"),
        ({"rope_type": "linear", "factor": "two"}, "rope_scaling.factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "original_max_position_embeddings"),
        ({"rope_type": "linear", "factor": 0.5}, "factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.25}, "partial_rotary_factor"),
        ("linear", "rope_scaling"),
    ],
)
def test_bad_rotary_scalings(scaling, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf({**LLAMA_3_2_1B, "rope_scaling": scaling})


def test_sliding_windows_of_qwen_models():
    on = {**QWEN2_5_MATH_1_5B, "use_sliding_window": True}
    assert ModelConfig.from_hf(on).layer_windows == (None,) * 21 + (4096,) * 7
    named = {**on, "layer_types": ["sliding_attention", "full_attention"] * 14}
    assert ModelConfig.from_hf(named).window_kinds == (4096, None)
    for config in (on, named):
        assert ModelConfig.from_hf(ModelConfig.from_hf(config).to_hf()) == ModelConfig.from_hf(config)
    absent = {k: v for k, v in QWEN2_5_MATH_1_5B.items() if k != "use_sliding_window"}
    for unused in (
        absent, {**on, "max_window_layers": 28}, {**on, "layer_types": ["full_attention"] * 28},
        {**on, "sliding_window": None}, {**named, "use_sliding_window": False},
    ):  # fmt: skip
        assert ModelConfig.from_hf(unused).layer_windows == ()
    with pytest.raises(UserError, match="one per layer"):
        ModelConfig.from_hf({**on, "layer_types": ["full_attention"] * 27})
    nested = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(UserError, match="rope_parameters.sliding_attention"):
        ModelConfig.from_hf({**on, "rope_parameters": nested})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_windows": (4,)}, "one entry for each of 28 layers, found 1"), ({"sliding_window": 0}, "found 0"),
        ({"attn_softcap": -1.0}, "attn_softcap must be positive or None, found -1.0"),
    ],
)  # fmt: skip
def test_bad_windows_and_soft_caps(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(ModelConfig.from_hf(QWEN2_5_MATH_1_5B), **change)


def test_windows_and_soft_caps_that_a_family_lacks_are_not_written():
    for base, change in ((LLAMA_3_2_1B, {"sliding_window": 8}), (QWEN3_0_6B, {"attn_softcap": 50.0})):
        with pytest.raises(UserError, match="cannot hold"):
            dataclasses.replace(ModelConfig.from_hf(base), **change).to_hf()


def test_rotary_fields_nested_by_layer_type():
    plain = {k: v for k, v in QWEN3_0_6B.items() if k not in ("rope_theta", "rope_scaling")}
    full = {"rope_type": "yarn", "rope_theta": 5e6, "factor": 4.0, "original_max_position_embeddings": 32768}
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    nested = {**plain, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
    config = ModelConfig.from_hf(nested)
    assert config.rope_theta == 5e6 and config.rope_scaling is not None and config.rope_scaling.factor == 4.0
    assert config == ModelConfig.from_hf({**plain, "rope_parameters": full})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_tetha": 1e6}}, "rope_parameters.rope_tetha=.*did you mean rope_theta"),
        ({"rope_parameters": {"full_attention": {"theta": 1e6}}}, "rope_parameters.full_attention.theta"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1e6}}}, "full_attention is missing"),
        ({"rope_parameters": {"full_attention": {}, "rope_theta": 1e6}}, "rope_theta=1000000.0.*nested by layer type"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_theta=None .*it is missing"),
        ({"rope_scaling": {"type": "yarn", "facter": 4.0}}, "rope_scaling.facter=4.0.*did you mean factor"),
        ({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}, "rope_scaling.mrope_section"),
        ({"rope_tetha": 1e6}, "rope_tetha=1000000.0 is not supported: unknown field; did you mean rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta=inf is not supported: expected a finite number"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": 1}}, "truncate=1 .*true or false"),
        ({"rope_scaling": {"type": ["yarn"], "factor": 4.0}}, "rope_type"),
    ],
)
def test_unknown_and_wrong_rotary_fields(change, message):
    without = ("rope_theta", "rope_scaling") if "rope_parameters" in change else ()
    plain = {k: v for k, v in QWEN3_0_6B.items() if k not in without}
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf({**plain, **change})


MISTRAL = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "vocab_size": 32768,
}  # fmt: skip


def test_mistral_has_one_window_or_none():
    config = ModelConfig.from_hf(MISTRAL)
    assert (config.architecture, config.context, config.num_kv_heads) == ("mistral", 32768, 8)
    assert config.window_kinds == (None,)
    with_window = ModelConfig.from_hf({**MISTRAL, "sliding_window": 4096})
    assert (with_window.context, with_window.window_kinds) == (32768, (4096,))
    absent = {k: v for k, v in MISTRAL.items() if k not in ("sliding_window", "architectures")}
    assert ModelConfig.from_hf(absent).sliding_window == 4096  # what the class assumes
    for one in (config, with_window):
        assert ModelConfig.from_hf(one.to_hf()) == one
    with pytest.raises(UserError, match="sliding_window"):
        ModelConfig.from_hf({**MISTRAL, "sliding_window": "4096"})


@pytest.mark.parametrize(
    "name", ["Qwen2ForProcessRewardModel", "Qwen2ForSequenceClassification", "LlamaForTokenClassification"]
)
def test_reward_models_are_pointed_to_their_loader(name):
    with pytest.raises(UserError, match="a classification or reward model.*prm_jax.prm.*prm-jax score"):
        ModelConfig.from_hf({**QWEN2_5_MATH_1_5B, "architectures": [name]})


ODD = [
    None, True, False, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x" * 5000, [], [None], [[]], {}, {"a": {}},
]  # fmt: skip


@pytest.mark.parametrize("field", [*LLAMA_3_2_1B, "layer_types", "sliding_window", "rope_parameters", "auto_map"])
def test_odd_values_of_every_field_are_read_or_refused_in_one_short_line(field):
    for base in PUBLISHED.values():
        for odd in ODD:
            try:
                ModelConfig.from_hf({**base, "use_sliding_window": True, field: odd})
            except UserError as error:
                assert len(str(error)) < 800


@pytest.mark.parametrize("field", ["rope_type", "factor", "original_max_position_embeddings", "high_freq_factor"])
def test_odd_values_of_rotary_scalings(field):
    for kind in ("llama3", "yarn", "linear"):
        given = {**LLAMA_3_2_1B["rope_scaling"], "rope_type": kind}
        for odd in ODD:
            try:
                ModelConfig.from_hf({**LLAMA_3_2_1B, "rope_scaling": {**given, field: odd}})
            except UserError as error:
                assert len(str(error)) < 800


def test_not_an_object():
    with pytest.raises(UserError, match="list"):
        ModelConfig.from_hf([])  # type: ignore[arg-type]


TINY = ModelConfig(
    vocab_size=17, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 3}, "head_dim"),
        ({"num_layers": 0}, "num_layers"),
        ({"vocab_size": 17.0}, "vocab_size"),
        ({"dtype": "int8"}, "dtype"),
        ({"compute_dtype": "fp8"}, "compute_dtype"),
        ({"remat": "some"}, "remat"),
        ({"architecture": "gpt2"}, "architecture"),
        ({"architecture": "qwen3"}, "qk_norm"),
        ({"qk_norm": True}, "qk_norm"),
        ({"architecture": "qwen2"}, "attention_bias"),
        ({"architecture": "qwen2", "attention_bias": True, "mlp_bias": True}, "mlp_bias"),
        ({"attention": "flash"}, "attention"),
        ({"attention": "cudnn"}, "compute_dtype"),
    ],
)
def test_inconsistent_fields_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


def test_importing_the_package_and_its_configuration_does_not_import_jax():
    code = (
        "import sys, prm_jax.models as m; m.ModelConfig; dir(m)\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
        "try: m.nothing\nexcept AttributeError: pass\nelse: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists_and_is_documented():
    import prm_jax.models as models

    page = (pathlib.Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for name in models.__all__:
        assert getattr(models, name) is not None
        assert f"`{name}`" in page
