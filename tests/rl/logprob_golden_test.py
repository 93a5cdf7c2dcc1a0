"""The first published numbers of the chain: log-probabilities of a response from logits, shifted by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.pallas import linear_logprob
from tests.rl import golden


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_are_read_one_position_before_their_token(temperature):
    case = golden.load("prime")["logprob_shift"]
    given, out = case["in"], case["out"]
    logits, ids, prompt = jnp.array(given["logits"]), jnp.array(given["input_ids"]), given["prompt_len"]
    rows, vocabulary = logits.shape[0], logits.shape[-1]
    # With the identity as the head, hidden states are logits.
    logp, _ = linear_logprob(
        logits[:, prompt - 1 : -1].reshape(-1, vocabulary),
        jnp.eye(vocabulary),
        ids[:, prompt:].reshape(-1),
        temperature=temperature,
    )
    mask = np.array(given["attention_mask"])[:, prompt:] == 1
    np.testing.assert_array_equal(mask, np.array(out["resp_mask"]) == 1)
    name = "resp_logp_T1" if temperature == 1 else f"resp_logp_T{temperature}"
    expected = np.array(out[name])
    np.testing.assert_allclose(np.array(logp).reshape(rows, -1)[mask], expected[mask], rtol=1e-5)
    if temperature == 1:
        np.testing.assert_allclose(np.where(mask, np.array(logp).reshape(rows, -1), 0).sum(1), out["sum_T1"], rtol=1e-5)
