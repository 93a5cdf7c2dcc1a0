"""Traces of tool calls that a reward model writes after the solutions that it judges (Themis, arXiv 2310.01045)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.prm.text_layout import lay_out, tokenize
from prm_jax.rollouts.environments import EpisodeStart, Feedback, TurnLimits, play
from prm_jax.rollouts.forced_text import text_spans
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_options import SlotTuning
from prm_jax.rollouts.slots import SlotEngine


def write_traces(
    prm: Any, records: Sequence[StepRecord], tool: Any | None, *, max_new_tokens: int, max_calls: int = 4,
    rows: int = 64,
) -> list[StepRecord]:  # fmt: skip
    """Solutions with a trace as one more step, decoded greedily by the reward model's own language model.

    Args:
      prm: a ``score.PRM`` whose layout puts steps directly after each other.
      records: solutions; one with forced spans has its trace already and stays as it is.
      tool: with ``step`` and ``markers``, from `make_tool`; None: nothing answers.
      max_new_tokens: of a trace with the tool's answers.
      max_calls: answers in a trace.
      rows: traces that are written at once.

    Returns:
      In the order of the records. The solution and the tool's answers are forced spans: the model reads them.

    Raises:
      UserError: a solution leaves no room for a trace in the model's context, or the tool failed.
    """
    bare = [index for index, record in enumerate(records) if not record.forced]
    prompts = [_prompt(prm, records[index]) for index in bare]
    found = list(records)
    if not bare:
        return found
    room = prm.spec.config.context - max_new_tokens
    long = [records[index].id for index, prompt in zip(bare, prompts, strict=True) if len(prompt) > room]
    if long:
        raise UserError(
            f"{long[0]}: this solution and a trace of {max_new_tokens} tokens exceed the model's context of "
            f"{prm.spec.config.context} tokens (and so do {len(long) - 1} others): train with a smaller "
            "--prm.max-new-tokens or on a model with a longer context"
        )
    step, stops = (lambda _: Feedback(done=True), ()) if tool is None else (tool.step, (tool.markers.close,))
    engine = SlotEngine(
        prm.spec.config, prm.weights.model, slots=rows, key=jax.random.key(0), sampling=SamplingOptions(0.0),
        stops=(stops,), tokenizer=prm.tokenizer, tuning=SlotTuning(hold=(0,)),
    )  # fmt: skip
    starts = [EpisodeStart(prompt, number, 0, step) for number, prompt in enumerate(prompts)]
    limits = TurnLimits(max_new_tokens, max_turns=max_calls + 1)
    for index, episode in zip(bare, play(engine, starts, tokenizer=prm.tokenizer, limits=limits), strict=True):
        if episode.end == "failed":
            raise UserError(f"{records[index].id}: no trace: {episode.failure}")
        found[index] = _with_trace(records[index], episode, prm.tokenizer)
    return found


def _prompt(prm: Any, record: StepRecord) -> tuple[int, ...]:
    """The tokens before a trace, as a record with one has them."""
    read = ((0, sum(map(len, record.steps))),)
    laid = lay_out(record.prompt, record.steps, prm.layout, prm.tokenizer, read)
    return tuple(tokenize(laid, prm.tokenizer).ids.tolist())


def _with_trace(record: StepRecord, episode: Any, tokenizer: Any) -> StepRecord:
    size = sum(map(len, record.steps))
    text = tokenizer.decode(episode.tokens.tolist(), skip_special=True)
    answers = text_spans(episode.tokens, episode.sampled, tokenizer)
    spans = ((0, size), *((size + start, size + end) for start, end in answers))
    labels = None if record.labels is None else (*record.labels, None)
    return dataclasses.replace(record, steps=(*record.steps, text), labels=labels, forced=spans)
