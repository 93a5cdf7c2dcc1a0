"""Slots and `generate` draw the same tokens; where they part, float64 must put the draw on the edge between the two."""

import jax
import numpy as np
import pytest

from prm_jax import models
from prm_jax.models.sampling import row_uniforms
from prm_jax.rollouts import Request, SamplingOptions, SlotEngine, SlotTuning, sample_all
from tests.models import numpy_transformer

KEY = jax.random.key(11)
PROMPTS = [(5, 600, 7), (1, 2, 3, 4, 5, 6, 7, 8, 9), (650, 3), (40, 41, 42, 43)]
SAMPLES, LENGTH = 3, 14
EDGE = 1e-6
"""Share of the probability mass by which rounding may move the edge between two tokens."""


@pytest.fixture(scope="module")
def model():
    """A vocabulary above 512, of which blocks are drawn first."""
    config = models.ModelConfig(
        vocab_size=700, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        max_position_embeddings=64,
    )  # fmt: skip
    return config, jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["sampled", "greedy"])
def expected(request, model):
    """(temperature, the tokens [B, R] of `generate`, their log-probabilities)."""
    made = models.generate(
        *model, [list(prompt) for prompt in PROMPTS], KEY, samples_per_prompt=SAMPLES, max_new_tokens=LENGTH,
        temperature=request.param,
    )  # fmt: skip
    return request.param, np.asarray(made.tokens), np.asarray(made.logp)


def distance(p: np.ndarray, uniforms: np.ndarray, token: int, temperature: float) -> float:
    """How far, in probability, a draw from p [V] is from giving a token; 0 where it gives the token.

    With one stage the token's interval of the cumulative distribution must contain the first uniform; with two, its
    block's interval must contain the first, and its own interval inside the block the second.
    """
    if not temperature:
        return float(p.max() - p[token])
    if len(p) <= 512:
        return outside(p, token, uniforms[0])
    p = np.pad(p, (0, -len(p) % 256)).reshape(-1, 256)
    block, inside = divmod(token, 256)
    return max(outside(p.sum(1), block, uniforms[0]), outside(p[block] / p[block].sum(), inside, uniforms[1]))


def outside(p: np.ndarray, index: int, uniform: float) -> float:
    top = np.cumsum(p)[index]
    return max(0.0, uniform - top, top - p[index] - uniform)


def check_parting(model, prompt: int, sample: int, tokens: np.ndarray, other: np.ndarray, temperature: float) -> int:
    """Fails unless the rows are equal, or both tokens of their first difference are within `EDGE` of the draw.

    Returns:
      The number of equal tokens at the beginning.
    """
    if np.array_equal(tokens, other):
        return len(tokens)
    at = int(np.argmax(tokens != other))
    uniforms = np.asarray(row_uniforms(KEY, np.array([prompt]), samples=SAMPLES, steps=LENGTH))[at, sample]
    context = np.array([*PROMPTS[prompt], *tokens[:at]])
    p = np.exp(numpy_transformer.log_softmax(*model, context)[-1])
    far = [distance(p, uniforms, int(row[at]), temperature) for row in (tokens, other)]
    assert max(far) <= EDGE, f"prompt {prompt}, sample {sample}, token {at}: {far} of the mass from the edge"
    return at


@pytest.mark.parametrize(("slots", "steps"), [(1, 32), (4, 1), (4, 7), (16, 7), (16, 32)])
def test_a_row_parts_from_generate_only_on_an_edge(model, expected, slots, steps):
    temperature, tokens, logp = expected
    made = SlotEngine(
        *model, slots=slots, columns=32, key=KEY, sampling=SamplingOptions(temperature=temperature),
        tuning=SlotTuning(steps_per_call=steps, sizes=(1.0,)),
    )  # fmt: skip
    requests = [Request(PROMPTS[i // SAMPLES], i // SAMPLES, i % SAMPLES, LENGTH) for i in range(len(tokens))]
    order = np.random.default_rng(slots + steps).permutation(len(requests))
    for places in (range(len(requests)), order):
        found = sample_all(made, [requests[i] for i in places])
        for i, one in zip(places, found, strict=True):
            same = check_parting(model, *divmod(int(i), SAMPLES), one.tokens, tokens[i], temperature)
            np.testing.assert_allclose(one.logp[:same], logp[i][:same], atol=1e-5)


def test_float64_gives_the_tokens_of_generate_and_no_others(model, expected):
    """The check itself: every token is what float64 draws, and the next one in the vocabulary is not."""
    temperature, tokens, _ = expected
    uniforms = np.asarray(row_uniforms(KEY, np.arange(len(PROMPTS)), samples=SAMPLES, steps=LENGTH))
    for i in range(len(tokens)):
        prompt = PROMPTS[i // SAMPLES]
        rows = np.exp(numpy_transformer.log_softmax(*model, np.array([*prompt, *tokens[i]])))
        for at, token in enumerate(tokens[i]):
            p = rows[len(prompt) - 1 + at]
            assert distance(p, uniforms[at, i], int(token), temperature) <= EDGE
    planted = tokens[0].copy()
    planted[3] = (planted[3] + 1) % 700
    with pytest.raises(AssertionError, match="prompt 0, sample 0, token 3"):
        check_parting(model, 0, 0, planted, tokens[0], temperature)
