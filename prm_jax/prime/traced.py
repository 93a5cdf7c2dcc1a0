"""A trial trace of one step on abstract arrays, so that a part that cannot work is refused before anything runs."""

import dataclasses
from typing import Any

import jax
import numpy as np

from prm_jax.prime.batch import Batch
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

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = Batch(
        tokens=array(np.int32, rows, width), mask=array(np.bool_, rows, width), keep=array(np.bool_, rows),
        outcome=array(np.float32, rows), group_ids=array(np.int32, rows), step_ids=array(np.int32, rows, width),
        judged=array(np.bool_, rows),
    )  # fmt: skip
    if source is not None and on_host(source):
        batch = dataclasses.replace(batch, process=array(np.float32, rows, width))
    if options.rollout.weights != "none":
        batch = dataclasses.replace(batch, weights=array(np.float32, rows))
    if "confidence" in options.reward.shaping:
        batch = dataclasses.replace(batch, confidence=array(np.float32, rows))
    state = jax.eval_shape(composed.initial_state)
    jax.eval_shape(make_step(composed.setup), state, composed.frozen, batch)
