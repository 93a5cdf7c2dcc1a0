"""Responses of an engine as rectangular arrays."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import Samples
from prm_jax.rollouts.engine import Engine, Request, sample_all


def generate_with(
    engine: Engine,
    prompts: Sequence[str | Sequence[int]],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int,
    stop: int = 0,
    prompt_ids: Sequence[int] | None = None,
) -> Samples:
    """Samples responses to prompts, like ``models.generate`` but with any engine.

    Args:
      engine: an idle engine.
      prompts: P prompts, token ids or texts (which need the engine's tokenizer).
      samples_per_prompt: G >= 1.
      max_new_tokens: R >= 1.
      stop: index of the engine's stop set.
      prompt_ids: P numbers that determine the prompts' randomness; 0 .. P-1 when None.

    Returns:
      `Samples` of P * G rows and R columns, prompt-major. From `LocalEngine` the same tokens as from
      ``models.generate`` with the same key. Log-probabilities are NaN where a server sent none.

    Raises:
      UserError: no prompts, or a prompt that the engine cannot serve.
    """
    if not prompts:
        raise UserError("there are no prompts: give at least one")
    ids = range(len(prompts)) if prompt_ids is None else prompt_ids
    encoded = [tuple(engine.tokenizer.encode(p)) if isinstance(p, str) else tuple(map(int, p)) for p in prompts]
    requests = [
        Request(prompt, int(number), sample, max_new_tokens, stop)
        for prompt, number in zip(encoded, ids, strict=True)
        for sample in range(samples_per_prompt)
    ]
    found = sample_all(engine, requests)
    tokens = np.zeros((len(found), max_new_tokens), np.int32)
    logp = np.zeros(tokens.shape, np.float32)
    mask = np.arange(max_new_tokens) < np.array([[len(one.tokens)] for one in found])
    for row, one in enumerate(found):
        tokens[row, mask[row]] = one.tokens
        logp[row, mask[row]] = np.nan if one.logp is None else one.logp
    finished = np.array([one.end in ("eos", "stop") for one in found])
    return Samples(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(logp), jnp.asarray(finished))
