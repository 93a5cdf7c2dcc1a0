"""Continuous batching: the responses of ``generate``, whatever the slots, the steps per call and the order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import models
from prm_jax.data.carry import ALPHABET
from prm_jax.errors import UserError
from prm_jax.rollouts import Request, SamplingOptions, SlotEngine, generate_with, sample_all

TOKENIZER = models.CharTokenizer(ALPHABET)
PROMPTS = ["1+2=", "3+4+5=", "7+7=", "9+9+9+9+9+9="]
STOPS = ((), (";", "#1"))


@pytest.fixture(scope="module")
def model():
    config = models.ModelConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return config, jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))


def engine(model, slots=3, steps_per_call=5, **options):
    return SlotEngine(
        *model, slots=slots, columns=40, key=jax.random.key(3), stops=STOPS, tokenizer=TOKENIZER,
        steps_per_call=steps_per_call, **options,
    )  # fmt: skip


def requests():
    return [
        Request(tuple(TOKENIZER.encode(prompt)), 10 * i, sample, 12 + i, sample % 2)
        for i, prompt in enumerate(PROMPTS)
        for sample in range(3)
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_generate_with_slots_is_generate(model, temperature):
    expected = models.generate(
        *model, PROMPTS, jax.random.key(3), samples_per_prompt=3, max_new_tokens=14, temperature=temperature,
        stop=STOPS[1], options=models.DecodeOptions(tokenizer=TOKENIZER),
    )  # fmt: skip
    made = engine(model, sampling=SamplingOptions(temperature))
    found = generate_with(made, PROMPTS, samples_per_prompt=3, max_new_tokens=14, stop=1)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    np.testing.assert_array_equal(found.finished, expected.finished)
    stats = made.stats()
    assert stats.responses == 12 and stats.tokens == int(found.mask.sum()) and 0.3 < stats.utilisation <= 1


@pytest.mark.parametrize(("slots", "steps_per_call"), [(1, 32), (16, 1)])
def test_slots_steps_and_order_change_nothing(model, slots, steps_per_call):
    asked = requests()
    expected = sample_all(engine(model), asked)
    order = np.random.default_rng(0).permutation(len(asked))
    found = sample_all(engine(model, slots, steps_per_call), [asked[i] for i in order])
    for one, i in zip(found, order, strict=True):
        np.testing.assert_array_equal(one.tokens, expected[i].tokens)
        np.testing.assert_allclose(one.logp, expected[i].logp, atol=1e-5)
        assert (one.end, one.stop_index) == (expected[i].end, expected[i].stop_index)


def test_other_requests_change_no_bit(model):
    asked = requests()
    (alone,) = sample_all(engine(model), asked[4:5])
    made = engine(model)
    tickets = made.submit(asked)
    gone = made.cancel([tickets[0], tickets[11]])  # both in the queue
    first = made.poll()
    running = [owner for owner in made._owner if owner is not None and owner != tickets[4]]
    gone += made.cancel(running[:1])
    found = dict(first)
    while new := made.poll():
        found |= new
    np.testing.assert_array_equal(found[tickets[4]].tokens, alone.tokens)
    np.testing.assert_array_equal(found[tickets[4]].logp, alone.logp)
    assert len(found) + len(gone) == len(asked) and {one.end for _, one in gone} == {"cancelled"}
    assert made.stats().responses == len(asked) and made.cancel([tickets[4], 99]) == []


def test_updates_and_bad_parameters(model):
    made = engine(model)
    made.submit(requests())
    made.poll()
    with pytest.raises(UserError, match="responses are being sampled"):
        made.update(model[1], 1)
    while made.poll():
        pass
    made.update(jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model[1]), 2)
    with pytest.raises(UserError, match="NaN for prompt_id 0, sample 0, token 0"):
        sample_all(made, requests()[:1])
    with pytest.raises(UserError, match="at least 1"):
        engine(model, slots=0)
    with pytest.raises(UserError, match="exceeds the model's context of 40 tokens"):
        engine(model).submit([Request((1,) * 30, 0, 0, 20)])
