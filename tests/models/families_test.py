"""Every family on small random weights against numbers that transformers computed from the same weights in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import (
    LoRAConfig,
    ModelConfig,
    QTensor,
    RopeScaling,
    decode,
    decode_rows,
    dequantized,
    expert_balance,
    experts,
    hidden_states,
    init_lora,
    init_params,
    join,
    load_weights,
    make_mesh,
    quantize,
    save_weights,
    token_logprobs,
    token_statistics,
)
from prm_jax.models.expert_load import ExpertLoad, Routing
from prm_jax.models.qtensor import dequantize
from prm_jax.models.rounding import round_matrix
from tests import compiled
from tests.models.checkpoints import FAMILIES, random_params, same_bits

TOKENS = np.random.default_rng(1).integers(0, 97, (1, 12))
# Log-probs of tokens 1 to 11 of ``random_params``, by transformers 5.10.4 and torch 2.13.0 with eager attention.
LOGP = {
    "mistral": [
        -5.298398, -7.526143, -6.56752, -7.325267, -3.285274, -6.627029, -10.270802, -5.672183, -6.879904,
        -6.258008, -3.964967,
    ],
    "gemma2": [
        -8.854681, -9.762609, -3.82445, -7.267229, -9.597047, -9.055632, -3.712957, -8.80694, -4.913146,
        -10.248783, -6.62948,
    ],
    "gemma3": [
        -11.467257, -10.261383, -4.205058, -8.589444, -14.22817, -12.845669, -13.107006, -11.798847,
        -9.900618, -8.584399, -5.186722,
    ],
    "olmo2": [
        -7.370261, -7.936365, -4.973788, -5.761244, -6.475989, -4.592776, -6.215208, -7.432935, -6.080502,
        -7.989278, -6.849864,
    ],
    "granite": [
        -5.019847, -5.303045, -5.609845, -4.938166, -4.570562, -4.870264, -5.001401, -4.493691, -4.746557,
        -4.847127, -5.02713,
    ],
    "smollm3": [
        -6.084071, -8.943965, -8.627117, -6.803591, -6.079362, -5.940871, -7.795335, -5.853116, -4.415666,
        -5.327088, -6.681731,
    ],
    "phi3": [
        -5.298398, -7.792813, -6.323715, -7.15852, -3.511873, -4.830639, -10.155398, -3.872737, -6.944534,
        -5.005279, -4.770084,
    ],
    "qwen3_moe": [
        -5.892009, -5.711554, -4.309203, -4.764228, -5.727414, -6.902425, -2.888937, -7.321351, -6.068789,
        -8.941473, -4.223504,
    ],
    "mixtral": [
        -10.085991, -5.613618, -3.747731, -7.011062, -7.516886, -6.985308, -6.961413, -9.169361, -4.968582,
        -4.843237, -6.742995,
    ],
}  # fmt: skip


def _exact(function, *args):
    with jax.default_matmul_precision("highest"):
        return jax.jit(function)(*args)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_those_of_transformers(name):
    config, params = FAMILIES[name], random_params(FAMILIES[name])
    found = _exact(lambda tokens: token_logprobs(config, params, tokens), TOKENS)
    np.testing.assert_allclose(found[0, 1:], LOGP[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_decoding_gives_the_same_log_probs(name):
    """A prefill of 4 tokens and one decoded token after another, at columns of their own."""
    config, params = FAMILIES[name], random_params(FAMILIES[name])
    packed = jax.jit(lambda params: decode.prepare(config, params, repack=True))(params)
    hidden, prefix = _exact(lambda t: decode.prefill(config, params, t, jnp.array([4])), TOKENS[:, :4])
    layers = decode_rows.init_columns(config, 1, 12, "float32")
    layers = decode_rows.copy_columns(layers, prefix.layers, jnp.array([0]), jnp.array([0]))

    @jax.jit
    def step(hidden, layers, tokens, column):
        logp = jax.nn.log_softmax(decode.next_logits(config, packed, hidden))[0]
        return logp, *decode_rows.decode_rows(config, packed, layers, tokens[0, column][None], column[None])

    found = []
    with jax.default_matmul_precision("highest"):
        for column in range(4, 12):
            logp, hidden, layers = step(hidden, layers, TOKENS, jnp.int32(column))
            found.append(logp[TOKENS[0, column]])
    np.testing.assert_allclose(found, LOGP[name][3:], rtol=0, atol=3e-5)


SPARSE = FAMILIES["mixtral"]


def test_a_token_is_scored_alike_in_any_batch():
    """Exactly: no token of another row takes an expert's place."""
    params = random_params(SPARSE)
    rows = np.concatenate([np.repeat(TOKENS[:, :1], 12, 1), TOKENS])
    score = jax.jit(lambda tokens: token_logprobs(SPARSE, params, tokens))
    np.testing.assert_array_equal(score(rows)[1], score(rows[::-1])[0])


@pytest.mark.parametrize("count", [1, 5, 300])
def test_grouped_products_and_their_gradients_are_those_of_each_expert_alone(count):
    rng = np.random.default_rng(count)
    x, kernels = jnp.asarray(rng.normal(size=(count, 3))), jnp.asarray(rng.normal(size=(4, 3, 2)))
    owner = jnp.asarray(np.sort(rng.choice([0, 1, 3], count)))  # expert 2 has no rows

    def loss(x, kernels, blocked):
        out = experts.grouped_product(x, kernels, experts.Groups.of(owner, 4, blocked=blocked))
        return (out**2).sum(), out

    expected = np.einsum("mk,mkn->mn", x, np.asarray(kernels)[owner])
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    for blocked in (True, False):
        gradients, out = gradient(x, kernels, blocked)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            gradients[0], 2 * np.einsum("mn,mkn->mk", expected, np.asarray(kernels)[owner]), rtol=1e-4, atol=1e-4
        )
        dense = np.zeros((4, 3, 2))
        np.add.at(dense, np.asarray(owner), 2 * np.einsum("mk,mn->mkn", x, expected))
        np.testing.assert_allclose(gradients[1], dense, rtol=1e-4, atol=1e-4)


def test_quantised_experts_are_expanded_one_at_a_time():
    keys = jax.random.split(jax.random.key(0), 4)
    form = {"bits": 4, "group": 8, "scheme": "symmetric", "fit": "mse"}
    one = [round_matrix(jax.random.normal(key, (16, 6)), **form) for key in keys]
    packed = jax.tree.map(lambda *parts: jnp.stack(parts), *one)
    x, g = jax.random.normal(keys[0], (40, 16)), jax.random.normal(keys[1], (40, 6))
    owner = jnp.sort(jax.random.choice(keys[2], jnp.array([0, 1, 3, 4]), (40,)))  # 2 has no rows, 4 is elsewhere

    def both(x, packed):
        groups = experts.Groups.of(owner, 4, blocked=True)
        out, pull = jax.vjp(lambda x: experts.grouped_product(x, packed, groups), x)
        return out, *pull(g)

    compiled = jax.jit(both).lower(x, packed).compile()
    assert "f32[4,16,6]" not in compiled.as_text()  # nor all experts together
    out, dx = compiled(x, packed)
    here = np.asarray(owner) < 4
    plain = np.asarray(dequantize(packed))[np.minimum(owner, 3)]
    np.testing.assert_allclose(out[here], np.einsum("mk,mkn->mn", x, plain)[here], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx[here], np.einsum("mn,mkn->mk", g, plain)[here], rtol=1e-4, atol=1e-4)


def _load_by_hand(experts, probabilities, mask):
    """(chosen, probability, balance) of one layer, token by token."""
    chosen, probability = np.zeros(probabilities.shape[1]), np.zeros(probabilities.shape[1])
    for own, p, counts in zip(experts, probabilities, mask, strict=True):
        if counts:
            probability += p
            for expert in own:
                chosen[expert] += 1
    balance = sum(len(p) * f / chosen.sum() * p_sum / mask.sum() for f, p_sum in zip(chosen, probability, strict=True))
    return chosen, probability, balance


def test_load_and_balance_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 9).astype(np.float32)
    experts, mask = np.argsort(-probabilities, 1)[:, :2], rng.random(9) < 0.7
    load = ExpertLoad.of(Routing(experts, probabilities[:, :2], probabilities), jnp.asarray(mask))
    chosen, probability, balance = _load_by_hand(experts, probabilities, mask)
    np.testing.assert_array_equal(load.chosen, chosen)
    np.testing.assert_allclose(load.probability, probability, rtol=1e-6)
    np.testing.assert_allclose(load.balance(), balance, rtol=1e-6)
    even = Routing(jnp.arange(8)[:, None] % 4, jnp.ones((8, 1)), jnp.full((8, 4), 0.25))
    assert ExpertLoad.of(even, jnp.ones(8, bool)).balance() == pytest.approx(1.0)
    one = Routing(jnp.zeros((8, 1), int), jnp.ones((8, 1)), jax.nn.one_hot(jnp.zeros(8, int), 4))
    assert ExpertLoad.of(one, jnp.ones(8, bool)).balance() == pytest.approx(4.0)
    assert ExpertLoad.of(one, jnp.zeros(8, bool)).balance() == 0


def test_load_counts_the_scored_tokens_of_every_layer():
    params = random_params(SPARSE)
    mask = jnp.asarray(np.arange(12) % 3 > 0)[None]

    @jax.jit
    def run(params, mask):
        return token_statistics(SPARSE, params, TOKENS, mask, start=4, load=True)

    found = run(params, mask)
    assert found.load.tokens.tolist() == [6, 6] and found.load.chosen.sum(-1).tolist() == [12, 12]
    np.testing.assert_allclose(found.load.probability.sum(-1), 6, rtol=1e-5)
    np.testing.assert_array_equal(found.logp, compiled.token_logprobs(SPARSE, params, TOKENS, mask, start=4))
    share, balance = jax.jit(expert_balance, static_argnums=0)(SPARSE, params, TOKENS, mask & (jnp.arange(12) >= 4))
    np.testing.assert_allclose(share, found.load.shares(), rtol=1e-6)
    np.testing.assert_allclose(balance, found.load.balance(), rtol=1e-6)
    with pytest.raises(ValueError, match="'mistral' has no experts"):
        token_statistics(FAMILIES["mistral"], None, TOKENS, load=True)


def test_adapters_of_a_sparse_model_are_those_of_its_attention():
    params = random_params(SPARSE)
    adapters = init_lora(SPARSE, params, jax.random.key(0), LoRAConfig(rank=2))
    assert adapters["layers"].keys() == {"attn"}
    score = jax.jit(lambda params: token_logprobs(SPARSE, params, TOKENS))
    np.testing.assert_array_equal(score(join(params, adapters)), score(params))
    with pytest.raises(UserError, match=r"LoRA targets \['up'\] are experts"):
        init_lora(SPARSE, params, jax.random.key(0), LoRAConfig(rank=2, targets=("q", "up")))


def test_quantised_experts_score_as_the_matrices_that_they_stand_for():
    params = jax.tree.map(jnp.asarray, random_params(SPARSE))
    packed = quantize(SPARSE, params, bits=8)
    plain = dequantized(packed)
    assert isinstance(packed["layers"]["mlp"]["down"]["kernel"], QTensor)
    score = jax.jit(lambda params: token_logprobs(SPARSE, params, TOKENS))
    np.testing.assert_allclose(score(packed), score(plain), rtol=0, atol=1e-4)
    for name in ("gate", "up", "down"):
        before, after = (tree["layers"]["mlp"][name]["kernel"] for tree in (params, plain))
        assert before.shape == after.shape and 0 < jnp.abs(before - after).max() < 0.01


@pytest.mark.skipif(len(jax.devices()) < 4, reason="needs 4 devices")
@pytest.mark.parametrize("name", ["phi3", "mixtral"])
def test_fused_tensors_and_experts_load_onto_a_mesh_and_are_saved_from_it(tmp_path, name):
    config, params = FAMILIES[name], random_params(FAMILIES[name])
    save_weights(tmp_path / "one", config, params)
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    read, placed = load_weights(tmp_path / "one", mesh=mesh)
    assert read == config and same_bits(placed, params)
    assert placed["layers"]["mlp"]["down"]["kernel"].sharding.spec[-2:] == ("tensor", "fsdp")
    save_weights(tmp_path / "two", config, placed)
    assert (tmp_path / "one/SHA256SUMS").read_text() == (tmp_path / "two/SHA256SUMS").read_text()


def test_norm_scales_start_at_the_identity():
    params = init_params(FAMILIES["gemma2"], jax.random.key(0))
    assert not params["final_norm"]["scale"].any() and not params["layers"]["attn_post_norm"]["scale"].any()


def test_rows_beyond_the_original_context_of_longrope_are_refused():
    config = FAMILIES["phi3"]
    assert config.context == 128
    with pytest.raises(ValueError, match="129 columns are more than 128"):
        hidden_states(config, random_params(config), jnp.zeros((1, 129), jnp.int32))


# The fields that decide something in published config.json files of each family.
_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 50}
PUBLISHED = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "rope_theta": 10000.0, "sliding_window": 4096, **_SMALL,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 26, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, **_SMALL,
    },
    "olmo2": {
        "architectures": ["Olmo2ForCausalLM"], "num_hidden_layers": 16, "rms_norm_eps": 1e-6, "rope_theta": 500000,
        "tie_word_embeddings": False, **_SMALL,
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"], "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
        "logits_scaling": 8.0, "num_hidden_layers": 40, "residual_multiplier": 0.22, "rope_theta": 10000000.0,
        "tie_word_embeddings": True, **_SMALL,
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"], "layer_types": ["full_attention"] * 8, "mlp_bias": False,
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0], "num_hidden_layers": 8,
        "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False, **_SMALL,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 131072, "num_hidden_layers": 32,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6},
        "sliding_window": 262144, **_SMALL,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1, "head_dim": 128, "max_window_layers": 48,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "sliding_window": None,
        "use_sliding_window": False, **_SMALL,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"], "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 4, "num_local_experts": 8, "rope_theta": 1e6, "sliding_window": None, **_SMALL,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_round_trip(name):
    config = ModelConfig.from_hf(PUBLISHED[name])
    assert config.architecture == name and ModelConfig.from_hf(config.to_hf()) == config


def test_what_published_configurations_mean():
    read = {name: ModelConfig.from_hf(fields) for name, fields in PUBLISHED.items()}
    assert read["gemma2"].windows[:3] == (4096, None, 4096) and read["gemma2"].tie_word_embeddings
    assert read["gemma3"].windows[4:7] == (512, None, 512)
    assert read["gemma3"].rotations[4:7] == ("local", "plain", "local")
    assert read["granite"].score_scale == 0.015625
    assert read["smollm3"].rotations[2:4] == ("plain", "none")
    assert (read["phi3"].rotary_dim, read["phi3"].context) == (12, 4096)
    assert (read["qwen3_moe"].intermediate_size, read["qwen3_moe"].norm_topk) == (768, True)
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    newer = {k: v for k, v in PUBLISHED["gemma3"].items() if not k.startswith("rope")} | {"rope_parameters": nested}
    gemma3 = ModelConfig.from_hf(newer)
    assert (gemma3.rope_theta, gemma3.rope_local_theta) == (1e6, 2e4)
    assert gemma3.rope_scaling == RopeScaling(kind="linear", factor=8.0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0 .*positive"),
        ("gemma2", {"layer_types": ["sliding_attention"]}, "layer_types=.*one per layer"),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "facter": 8}}, "rope_scaling.facter"),
        ("granite", {"num_local_experts": 40}, "num_local_experts=40"),
        ("granite", {"residual_multiplier": -1.0}, "residual_multiplier=-1.0"),
        ("olmo2", {"sliding_window": 4096}, "sliding_window=4096 .*no attention windows"),
        ("olmo2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("smollm3", {"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\] .*per layer"),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, "longrope needs .*short_factor"),
        (
            "phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor needs 6 entries, found 1",
        ),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] .*all sparse or none"),
        ("qwen3_moe", {"num_experts_per_tok": 200}, "experts_per_token must be 1 to 128"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
        ("mixtral", {"layer_types": ["full_attention"] * 32}, "layer_types=.*one window for all layers"),
    ],
)  # fmt: skip
def test_variants_that_are_not_covered_are_refused_by_name(name, change, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf({**PUBLISHED[name], **change})


def test_what_a_family_lacks_is_not_written():
    for name, change in (("mistral", {"logit_softcap": 30.0}), ("olmo2", {"unrotated_layers": (1,)})):
        with pytest.raises(UserError, match=f"architecture '{name}' cannot hold {next(iter(change))}"):
            dataclasses.replace(FAMILIES[name], **change).to_hf()
    with pytest.raises(UserError, match="embed_scale of gemma2 is the root of hidden_size"):
        dataclasses.replace(FAMILIES["gemma2"], embed_scale=1.0).to_hf()
