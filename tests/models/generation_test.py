import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.decode_loop import ResponseSpec
from prm_jax.models.generation import DecodeOptions, PromptArrays, generate, generate_arrays
from prm_jax.models.lora import LoRAConfig, init_lora, join
from prm_jax.models.responses import Samples, pack, response_texts
from prm_jax.models.sampling import make_sampling
from prm_jax.models.tokenizer import CharTokenizer
from prm_jax.models.transformer import init_params
from tests.compiled import hidden_states, logits

_SHAPE = dict(
    vocab_size=19, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8
)
CONFIG = ModelConfig(**_SHAPE, max_position_embeddings=64)
FAMILIES = {
    "llama": dataclasses.replace(CONFIG, num_layers=2),
    "qwen2": ModelConfig(**_SHAPE, architecture="qwen2", attention_bias=True, tie_word_embeddings=True),
    "qwen3": ModelConfig(**_SHAPE, architecture="qwen3", qk_norm=True),
}
PROMPTS = [[1, 5, 6, 7], [3, 4], [8, 9, 10, 11, 12, 13, 14]]
KEY = jax.random.key(1)
TOKENIZER = CharTokenizer("0123456789+=;#\na")


@functools.partial(jax.jit, static_argnums=0)
def _params(config: ModelConfig, *, gain: float = 3.0) -> dict:
    """Random parameters with every bias and scale in play, and a head sharp enough to have preferences."""
    params = init_params(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    noisy = [leaf + 0.2 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    params = jax.tree.unflatten(tree, noisy)
    name = "embed" if config.tie_word_embeddings else "head"
    return {**params, name: jax.tree.map(lambda leaf: leaf * gain, params[name])}


PARAMS = _params(CONFIG)


NEVER = (np.zeros((2, CONFIG.vocab_size), np.int32),)  # a stop automaton that never stops
SPEC = ResponseSpec(make_sampling(), NEVER, samples=2, steps=12)


def _run(prompts=PROMPTS, key=KEY, config=CONFIG, params=PARAMS, **options) -> Samples:
    """``generate`` with fields of ``DecodeOptions`` among the keywords."""
    common = dict(samples_per_prompt=2, max_new_tokens=12)
    rare = {field.name for field in dataclasses.fields(DecodeOptions)} & options.keys()
    more = DecodeOptions(**{name: options.pop(name) for name in rare})
    return generate(config, params, prompts, key, **{**common, **options}, options=more)


def _arrays(prompts) -> PromptArrays:
    tokens = np.zeros((len(prompts), 8), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return PromptArrays(jnp.asarray(tokens), jnp.array([len(p) for p in prompts], jnp.int32), jnp.arange(len(prompts)))


def _rescore(config: ModelConfig, params: dict, prompts, samples: Samples, temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities of the responses from one uncached forward pass over padded rows."""
    tokens, mask = pack(prompts, samples, 20)
    log_p = jax.nn.log_softmax(logits(config, params, hidden_states(config, params, tokens)) / temperature)
    scored = np.take_along_axis(np.asarray(log_p)[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    out = np.zeros(samples.mask.shape, np.float32)
    out[np.asarray(samples.mask)] = scored[mask[:, 1:]]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_an_uncached_pass(family):
    config = FAMILIES[family]
    params = _params(config)
    samples = _run(config=config, params=params, temperature=1.5, eos_ids=(2,))
    assert samples.tokens.shape == samples.mask.shape == samples.logp.shape == (6, 12)
    np.testing.assert_allclose(samples.logp, _rescore(config, params, PROMPTS, samples, 1.5), atol=2e-5)


def test_unpacked_kernels_give_the_same_samples():
    """The layout for accelerators, where nothing is repacked."""
    stored = generate_arrays(CONFIG, PARAMS, _arrays(PROMPTS), KEY, SPEC, repack=False)
    repacked = _run()
    np.testing.assert_array_equal(stored.tokens, repacked.tokens)
    np.testing.assert_allclose(stored.logp, repacked.logp, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_used(dtype):
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    adapters = init_lora(config, PARAMS, jax.random.key(2), LoRAConfig(rank=2))
    untouched = _run(config=config, params=join(PARAMS, adapters))
    joined = join(PARAMS, jax.tree.map(lambda leaf: leaf + 0.2, adapters))
    samples = _run(config=config, params=joined)
    assert not np.array_equal(samples.logp, untouched.logp)
    tolerance = 2e-5 if dtype == "float32" else 0.15
    np.testing.assert_allclose(samples.logp, _rescore(config, joined, PROMPTS, samples), atol=tolerance)
    if dtype == "float32":
        np.testing.assert_array_equal(untouched.tokens, _run().tokens)


def test_greedy_decoding_takes_the_most_probable_token_each_time():
    samples = _run(temperature=0.0)
    tokens, mask = pack(PROMPTS, samples, 20)
    best = logits(CONFIG, PARAMS, hidden_states(CONFIG, PARAMS, jnp.asarray(tokens))).argmax(axis=-1)
    np.testing.assert_array_equal(tokens[:, 1:][mask[:, 1:]], np.asarray(best)[:, :-1][mask[:, 1:]])
    again = _run(temperature=0.0, key=jax.random.key(9))
    np.testing.assert_array_equal(again.tokens, samples.tokens)


def test_a_row_does_not_depend_on_the_others():
    whole = _run()
    assert len(np.unique(np.asarray(whole.tokens), axis=0)) == 6
    turned = _run([PROMPTS[2], PROMPTS[0], [2, 2, 2]], prompt_ids=[2, 0, 7])
    np.testing.assert_array_equal(turned.tokens[:4], np.asarray(whole.tokens)[[4, 5, 0, 1]])
    more = _run([*PROMPTS, [1] * 20], samples_per_prompt=3, max_new_tokens=15)
    np.testing.assert_array_equal(np.asarray(more.tokens)[[0, 1, 3, 4, 6, 7], :12], whole.tokens)
    assert not np.array_equal(_run(key=jax.random.key(2)).tokens, whole.tokens)


def test_padding_prompts_generate_nothing_and_change_nothing():
    samples = generate_arrays(CONFIG, PARAMS, _arrays([PROMPTS[0], [], PROMPTS[2]]), KEY, SPEC, repack=True)
    assert not samples.mask[2:4].any() and not samples.finished.any() and not samples.tokens[2:4].any()
    np.testing.assert_array_equal(np.asarray(samples.tokens)[[0, 1, 4, 5]], _run().tokens[jnp.array([0, 1, 4, 5])])


def test_a_response_ends_with_its_first_end_token():
    free = _run()
    tokens = np.asarray(free.tokens)
    eos = int(tokens[0, 3])
    samples = _run(eos_ids=(eos, 18))
    for row in range(6):
        ends = np.nonzero((tokens[row] == eos) | (tokens[row] == 18))[0]
        count = ends[0] + 1 if ends.size else 12
        assert bool(samples.finished[row]) == bool(ends.size)
        np.testing.assert_array_equal(samples.mask[row], np.arange(12) < count)
        np.testing.assert_array_equal(samples.tokens[row], np.where(np.arange(12) < count, tokens[row], 0))
        np.testing.assert_allclose(samples.logp[row], np.where(np.arange(12) < count, free.logp[row], 0))


def test_a_token_sequence_ends_a_response():
    free = _run()
    sequence = np.asarray(free.tokens)[1, 4:6].tolist()
    kept = _run(stop=[sequence])
    dropped = _run(stop=[sequence], keep_stop=False)
    row = np.asarray(free.tokens)[1].tolist()
    end = next(i for i in range(11) if row[i : i + 2] == sequence)
    assert kept.finished[1] and dropped.finished[1]
    assert int(kept.mask[1].sum()) == end + 2 and int(dropped.mask[1].sum()) == end
    assert not np.asarray(dropped.logp)[1, end:].any() and not np.asarray(dropped.tokens)[1, end:].any()


def test_a_stop_string_ends_text_and_mask_together():
    free = _run()
    texts = response_texts(free, TOKENIZER)
    stop = texts[3][4:6]
    for keep_stop in (True, False):
        samples = _run(stop=[stop], tokenizer=TOKENIZER, eos_ids=(), keep_stop=keep_stop)
        cut = response_texts(samples, TOKENIZER, stop=[stop], keep_stop=keep_stop)
        for row, text in enumerate(texts):
            end = text.find(stop)
            expected = text if end < 0 else text[: end + 2 * keep_stop]
            assert cut[row] == expected
            assert bool(samples.finished[row]) == (end >= 0)
            kept = np.asarray(free.tokens)[row, : int(samples.mask[row].sum())]
            assert TOKENIZER.decode(kept.tolist(), skip_special=True) == expected


def test_prompts_as_text_and_as_messages():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}="
    tokenizer = CharTokenizer(TOKENIZER.alphabet, chat_template=template)
    ids = tokenizer.encode("1+2=")
    mixed = _run(["1+2=", [{"role": "user", "content": "1+2"}], ids], tokenizer=tokenizer, prompt_ids=[0] * 3)
    np.testing.assert_array_equal(mixed.tokens[:2], mixed.tokens[2:4])
    np.testing.assert_array_equal(mixed.tokens[:2], mixed.tokens[4:])


def test_one_compilation_for_all_values_of_a_shape():
    before = generate_arrays._cache_size()  # type: ignore[attr-defined]
    params = PARAMS
    for seed, temperature in enumerate((0.5, 0.8, 1.2)):
        prompts = [[1 + seed] * (3 + seed), [2] * (5 - seed), [3]]
        samples = _run(
            prompts, jax.random.key(seed), params=params, temperature=temperature, eos_ids=(seed,), max_new_tokens=10
        )
        params = jax.tree.map(lambda leaf: leaf * 0.99, params)
        assert samples.tokens.shape == (6, 10)
    assert generate_arrays._cache_size() == before + 1  # type: ignore[attr-defined]


def test_the_loop_copies_no_cache():
    spec = dataclasses.replace(SPEC, samples=3, steps=40)
    lowered = generate_arrays.lower(CONFIG, PARAMS, _arrays([[1] * 4, [1] * 8]), KEY, spec, repack=True)
    text = lowered.compile().as_text()
    bodies = [
        text[(start := text.index(f"\n%{name} (")) : text.index("\n}", start)]
        for name in re.findall(r"body=%([\w.\-]+)", text)
    ]
    decoding = [body for body in bodies if "f32[6,2,8,40]" in body]
    assert decoding  # [B, num_kv_heads, head_dim, R]
    for body in decoding:
        assert not re.search(r"= f32\[6,2,(8,40|40,8)\]\S* copy\(", body)


def test_rows_are_split_over_the_mesh():
    prompts = [[1 + i, 2, 3] for i in range(8)]
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    samples = _run(prompts, params=placed, eos_ids=(2,))
    assert len(samples.tokens.sharding.device_set) == 8
    expected = _run(prompts, eos_ids=(2,))
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_allclose(samples.logp, expected.logp, atol=1e-5)


def test_an_explicit_sharding_and_rows_that_do_not_divide():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    expected = _run()
    np.testing.assert_array_equal(_run(params=placed).tokens, expected.tokens)
    spread = NamedSharding(jax.make_mesh((3,), ("rows",), axis_types=(AxisType.Auto,)), PartitionSpec("rows"))
    np.testing.assert_array_equal(_run(sharding=spread).tokens, expected.tokens)


def test_pack_concatenates_prompt_and_response():
    samples = Samples(
        tokens=np.array([[5, 6, 0], [7, 0, 0], [8, 9, 4], [0, 0, 0]]),  # type: ignore[arg-type]
        mask=np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], bool),  # type: ignore[arg-type]
        logp=np.zeros((4, 3)),  # type: ignore[arg-type]
        finished=np.ones(4, bool),  # type: ignore[arg-type]
    )
    tokens, mask = pack([[1, 2], [3]], samples, 5)
    np.testing.assert_array_equal(tokens, [[1, 2, 5, 6, 0], [1, 2, 7, 0, 0], [3, 8, 9, 4, 0], [3, 0, 0, 0, 0]])
    expected = [[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(mask, np.array(expected, bool))
    with pytest.raises(UserError, match="4 tokens, but rows have 3"):
        pack([[1, 2], [3]], samples, 3)
    with pytest.raises(UserError, match="4 responses are not a multiple of 3 prompts"):
        pack([[1], [2], [3]], samples, 5)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1] * 60]}, "60 tokens.*max_new_tokens=12.*64"),
        ({"prompts": [[1, 19]]}, "token 19.*0 to 18"),
        ({"prompts": [[1, -2]]}, "token -2"),
        ({"prompts": ["12"]}, "prompt 0 is text"),
        ({"prompts": [[{"role": "user", "content": "1"}]]}, "chat messages"),
        ({"samples_per_prompt": 0}, "samples_per_prompt is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": "ab"}, "'ab' needs a tokenizer"),
        ({"stop": [""]}, "empty"),
        ({"eos_ids": (19,)}, "token 19"),
        ({"temperature": -1.0}, "temperature"),
        ({"prompt_ids": [0, 1]}, "prompt_ids"),
        ({"tokenizer": CharTokenizer("0123456789abcdefghijk")}, "does not match"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(UserError, match=message):
        _run(**change)
