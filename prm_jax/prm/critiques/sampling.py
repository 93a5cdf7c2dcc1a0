"""Critiques from any engine: prompts, samples, and the verdicts in them with their probabilities."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.prm.critiques.formats import CritiqueFormat, problem_text
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.text_layout import prompt_tokens
from prm_jax.rollouts.engine import Engine, OnProgress, Request, Response, sample_all


@dataclasses.dataclass(frozen=True)
class Critique:
    """One critique of a solution.

    Attributes:
      text: what the judge wrote.
      step: the step that it judges; None: the steps in order.
      verdicts: one per step of the solution: probability that the step is right, None where nothing is said.
      tokens: that the judge wrote.
    """

    text: str
    step: int | None
    verdicts: tuple[float | None, ...]
    tokens: int


def sample_critiques(
    engine: Engine,
    records: Sequence[StepRecord],
    form: CritiqueFormat,
    *,
    layout: TextLayout,
    votes: int = 1,
    max_new_tokens: int = 512,
    told: bool = False,
    stop: int = 0,
    on_progress: OnProgress = lambda responses, tokens: None,
) -> list[list[Critique]]:
    """Asks for critiques of solutions.

    A verdict's probability is that of its word, given the reasoning before it; the probability of "right" is then p or
    1 - p. An engine without log-probabilities gives 1 or 0. The samples of a solution depend on its text, the engine's
    key and nothing else.

    Args:
      engine: idle.
      records: solutions.
      form: of the critiques.
      layout: whether and how the instruction becomes a chat.
      votes: critiques per solution, or per step for scope "step".
      max_new_tokens: of each critique.
      told: tell the judge the answer, ``provenance.reference`` or else ``provenance.answer`` of a right solution.
      stop: the engine's stop set that holds ``form.stop``.
      on_progress: called with the numbers of new critiques and tokens.

    Returns:
      The critiques of each solution, step by step for scope "step".

    Raises:
      UserError: a prompt without text, no answer to tell, or a prompt too long for the engine.
    """
    requests: list[Request] = []
    owners: list[tuple[int, int | None]] = []
    for place, record in enumerate(records):
        for step in range(len(record.steps)) if form.scope == "step" else (None,):
            prompt = critique_prompt(record, form, layout, engine.tokenizer, step=step, told=told)
            for sample in range(votes):
                requests.append(Request(tuple(prompt), _number(prompt), sample, max_new_tokens, stop))
                owners.append((place, step))
    found: list[list[Critique]] = [[] for _ in records]
    for (place, step), response in zip(owners, sample_all(engine, requests, on_progress), strict=True):
        found[place].append(read_critique(response, engine.tokenizer, form, len(records[place].steps), step))
    return found


def critique_prompt(
    record: StepRecord, form: CritiqueFormat, layout: TextLayout, tokenizer: Any, *, step: int | None,
    told: bool = False,
) -> list[int]:  # fmt: skip
    """The tokens that a judge reads.

    Args:
      record: the solution.
      form: of the critique.
      layout: whether the text becomes a chat.
      tokenizer: of the judge.
      step: index of the step to judge, for scope "step".
      told: see `sample_critiques`.
    """
    answer = reference_answer(record) if told else None
    text = form.prompt(problem_text(record.prompt, record.id), record.steps, step=step, answer=answer)
    return prompt_tokens(text, layout, tokenizer)


def reference_answer(record: StepRecord) -> str:
    """The correct answer that a record's provenance holds.

    Raises:
      UserError: there is none.
    """
    told = record.provenance
    if "reference" in told:
        return str(told["reference"])
    if "answer" in told and record.outcome is not None and record.outcome > 0.5:
        return str(told["answer"])
    raise UserError(
        f"{record.id}: a judge that is told the answer needs provenance.reference, the correct answer of the problem "
        "(or provenance.answer of a solution with outcome 1); add it, or leave --reverse out"
    )


def read_critique(
    response: Response, tokenizer: Any, form: CritiqueFormat, steps: int, step: int | None = None
) -> Critique:
    """The verdicts of a critique and their probabilities.

    Args:
      response: of the judge.
      tokenizer: of the judge.
      form: of the critique.
      steps: of the solution.
      step: the step that was asked about; None: all of them.
    """
    text, spans = tokenizer.decode_with_spans(response.tokens.tolist(), skip_special=True)
    verdicts: list[float | None] = [None] * steps
    for index, right, (start, end) in form.verdicts(text, steps):
        chance = 1.0
        if response.logp is not None:
            inside = [place for place, (low, high) in enumerate(spans) if low < end and high > start]
            chance = math.exp(min(float(np.sum(response.logp[inside], dtype=np.float64)), 0.0))
        verdicts[index if step is None else step] = chance if right else 1.0 - chance
    return Critique(text, step, tuple(verdicts), len(response.tokens))


def _number(prompt: Sequence[int]) -> int:
    """A request's number from what it asks, so that a solution's critiques do not depend on the others."""
    digest = hashlib.blake2b(np.asarray(prompt, np.int64).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
