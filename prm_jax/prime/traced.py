"""A trial trace of one step on abstract arrays, so that a part that cannot work is refused before anything runs."""

import jax

from prm_jax.prime.abstract import abstract_batch
from prm_jax.prime.compose import Composed
from prm_jax.prime.sources.base import on_host
from prm_jax.prime.step import make_step


def check_traceable(composed: Composed) -> None:
    """Traces one step on abstract arrays, so that a function that cannot work is refused before anything runs.

    Raises:
      UserError: from `checked_rewards`, `checked_loss`, or a method of a source.
    """
    options, source = composed.options, composed.setup.source
    rows = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    width = composed.sampler.max_prompt_tokens + composed.sampler.max_new_tokens
    batch = abstract_batch(options, rows, width, process=source is not None and on_host(source))
    state = jax.eval_shape(composed.initial_state)
    jax.eval_shape(make_step(composed.setup), state, composed.frozen, batch)
