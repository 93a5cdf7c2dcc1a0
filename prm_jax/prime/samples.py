"""Samples for reading: a few prompts of a step with their best and worst responses and the rewards of the steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.prime.collect import Collected
from prm_jax.prime.responses import Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.rollouts.forced_text import text_spans
from prm_jax.runs import processes
from prm_jax.runs.callbacks import Event
from prm_jax.runs.run_dir import Sample

PROMPTS = 3
"""Different prompts shown per step."""


class SampleWriter:
    """Callback that writes samples of every n-th step into the run directory.

    Args:
      sampler: knows tokenizer and splitter.
      every: steps between samples; the first step is always shown.
    """

    def __init__(self, sampler: Sampler, every: int) -> None:
        self.sampler, self.every = sampler, every

    def __call__(self, event: Event) -> None:
        """Writes the samples of a step."""
        if event.kind != "step" or (event.step - 1) % self.every:
            return
        collected: Collected = event.batch
        rewards = None if collected.rewards is None else np.asarray(processes.to_host(collected.rewards))
        rows = chosen_rows(collected.responses, rewards)
        event.run.log_samples(event.step, [self._sample(collected.responses, row, rewards) for row in rows])

    def _sample(self, responses: Responses, row: int, rewards: np.ndarray | None) -> Sample:
        text, ids = responses.texts[row], responses.step_ids[row]
        steps: Sequence[tuple[str, float]] = ()
        if rewards is not None:
            spans = self.sampler.task.splitter(text)
            steps = [(text[a:b], float(rewards[row][ids == index].sum())) for index, (a, b) in enumerate(spans)]
        problem = responses.problems[row // responses.samples_per_prompt]
        info: dict[str, Any] = {"reference": problem.answer}
        if responses.details and responses.details[row]:
            info["verdict"] = responses.details[row]
        forced = self._forced(responses, row)
        return Sample(self.sampler.prompt_text(problem), text, float(responses.outcome[row]), steps, info, forced)

    def _forced(self, responses: Responses, row: int) -> list[tuple[int, int]]:
        """Characters that the policy did not write: answers of environments and tools."""
        own = responses.mask[row]
        if responses.sampled is None or responses.sampled[row][own].all():
            return []
        return text_spans(responses.tokens[row][own], responses.sampled[row][own], self.sampler.tokenizer)


def chosen_rows(responses: Responses, rewards: np.ndarray | None) -> list[int]:
    """Rows of the best and the worst response of a few prompts; prompts with mixed outcomes come first.

    Responses of equal outcome are ordered by their total process reward.
    """
    size, groups = responses.samples_per_prompt, len(responses.problems)
    outcome = responses.outcome.reshape(groups, size)
    mixed = outcome.max(axis=1) > outcome.min(axis=1)
    total = np.zeros((groups, size)) if rewards is None else rewards.sum(axis=1).reshape(groups, size)
    rows: list[int] = []
    for group in np.argsort(~mixed, kind="stable")[:PROMPTS]:
        order = np.lexsort((total[group], outcome[group]))
        best, worst = int(order[-1]), int(order[0])
        rows += [int(group) * size + place for place in dict.fromkeys((best, worst))]
    return rows
