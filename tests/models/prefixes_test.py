"""Generation that reuses keys and values equals generation without reuse, whatever has been evicted."""

import jax
import numpy as np
import pytest

from prm_jax import models
from prm_jax.models.prefixes import PrefixStore

CONFIG = models.ModelConfig(
    architecture="qwen3", vocab_size=19, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4,
    num_kv_heads=2, head_dim=8, qk_norm=True, max_position_embeddings=128,
)  # fmt: skip
EOS = 3


@pytest.fixture(scope="module")
def params():
    return models.init_params(CONFIG, jax.random.key(1))


def go(params, prompts, ids, store=None, seed=0, steps=3):
    samples = models.generate(
        CONFIG, params, prompts, jax.random.key(seed), samples_per_prompt=2, max_new_tokens=steps, temperature=1.5,
        options=models.DecodeOptions(eos_ids=(EOS,), prompt_ids=ids, reuse=store),
    )  # fmt: skip
    return [np.asarray(x) for x in (samples.tokens, samples.mask, samples.logp, samples.finished)]


def assert_same(found, expected):
    for name, a, b in zip(("tokens", "mask", "logp", "finished"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 if name == "logp" else 0, err_msg=name)


def longer(prompts, found, rows):
    """Prompts with some of their responses, by row; a row below 0 is a prompt of its own."""
    tokens, mask = found[:2]
    return [prompts[r // 2] + tokens[r][mask[r]].tolist() if r >= 0 else [7, -r, 8, 9] for r in rows]


@pytest.mark.parametrize("max_bytes", [1 << 30, 20_000, 0])
def test_a_chain_of_steps(params, max_bytes):
    store = PrefixStore(max_bytes)
    prompts = [[1, 5, 6], [1, 2, *[4] * 13, 9], [8], [1, 5, 6]]
    choices = [(0, 1, 5, 6), (7, 3, 2, -1), (1, 1, 0, 4), (0, 1, 2, 3)]
    for number, rows in enumerate(choices):
        ids = [10 * number + i for i in range(len(prompts))]
        found = go(params, prompts, ids, store)
        assert_same(found, go(params, prompts, ids))
        prompts = longer(prompts, found, rows)
    assert store.nbytes <= max_bytes
    assert max_bytes == 0 or store.nbytes > 0
    if max_bytes > 1 << 20:
        assert (store.hits, store.misses) == (11, 5)  # the first four, and one prompt of its own
    elif max_bytes == 0:
        assert store.hits == 0


def test_rows_from_several_calls(params):
    store = PrefixStore(1 << 30)
    first, second = [[1, 2, 3 + i] for i in range(3)], [[4] * (7 + i) for i in range(3)]
    a, b = go(params, first, (0, 1, 2), store), go(params, second, (3, 4, 5), store)
    mixed = longer(first, a, (3,)) + longer(second, b, (5,)) + [[9, 9]]
    store.hits = store.misses = 0
    assert_same(go(params, mixed, range(3), store, seed=2), go(params, mixed, range(3), seed=2))
    assert (store.hits, store.misses) == (2, 1)
    assert_same(go(params, first, range(3), store, seed=3), go(params, first, range(3), seed=3))
    assert store.hits == 5  # prompts are kept, too
    other = models.init_params(CONFIG, jax.random.key(2))  # nothing is kept for other parameters
    assert_same(go(other, first, range(3), store), go(other, first, range(3)))
    assert store.hits == 5 and store.misses == 4
