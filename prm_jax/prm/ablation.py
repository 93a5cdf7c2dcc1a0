"""What a reward model's scores rest on: scores of solutions with a part of the input taken away.

Step-level reward models judged without natural language or without mathematics: arXiv 2412.15904.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.data.problems import Prompt
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.option_values import suggest
from prm_jax.prm import compiled
from prm_jax.prm.cases import Case, case_of
from prm_jax.prm.judge import process_bench, step_quality
from prm_jax.prm.reward_model_options import ScoringOptions
from prm_jax.prm.score import PRM, Scored, score_solutions

# Words are neither commands of LaTeX nor single letters, which are variables.
_WORDS = re.compile(r"(?<![\\\w])[^\W\d_]{2,}(?!\w)")
_FORMULAS = re.compile(
    r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+|(?<!\w)[^\W\d_](?!\w)|[\d+\-*/=^<>(){}\[\]|%]", re.DOTALL
)
MASKS = ("language", "mathematics", "problem", "earlier")
"""language: words; mathematics: formulas, numbers and variables; problem: the prompt; earlier: all steps before the one
that is scored. Besides these, "regex:PATTERN" takes away what a regular expression matches in the steps."""


def check_masks(masks: Sequence[str]) -> list[str]:
    """What is wrong with the names of masks; [] for nothing."""
    found = []
    for name in masks:
        if name.startswith("regex:"):
            try:
                re.compile(name.removeprefix("regex:"))
            except re.error as error:
                found.append(f"--mask {name}: not a regular expression: {error}")
        elif name not in MASKS:
            found.append(f"--mask {name!r} is unknown; {suggest(name, (*MASKS, 'regex:PATTERN'), 'masks')}")
    return found


def masked_records(records: Sequence[StepRecord], mask: str) -> list[StepRecord]:
    """The solutions without a part of their input: as many, or for "earlier" one for each step.

    A step of which nothing is left keeps its last character, so that it can be scored.

    Args:
      records: solutions.
      mask: one of `MASKS`, or ``regex:PATTERN``.
    """
    if mask == "problem":
        return [dataclasses.replace(record, prompt=_without_problem(record.prompt)) for record in records]
    if mask == "earlier":
        return [
            dataclasses.replace(record, steps=(step,), labels=None, id=f"{record.id}/{index}", forced=())
            for record in records
            for index, step in enumerate(record.steps)
        ]
    patterns = {"language": _WORDS, "mathematics": _FORMULAS}
    pattern = patterns[mask] if mask in patterns else re.compile(mask.removeprefix("regex:"))
    return [
        dataclasses.replace(record, steps=tuple(_without(step, pattern) for step in record.steps), forced=())
        for record in records
    ]


def ablation(
    prm: PRM, subsets: Mapping[str, Sequence[Scored]], masks: Sequence[str], options: ScoringOptions
) -> dict[str, Any]:
    """How good the scores are without a part of the input.

    Args:
      prm: the model.
      subsets: solutions as they were scored with the whole input, by name.
      masks: see `MASKS`.
      options: of the scoring.

    Returns:
      For each mask, for each subset: "auc" of steps and "first_error_f1" with a threshold of its own, where labels
      allow, each as [whole input, masked], and "correlation" (Spearman's) of masked with whole step scores.
    """
    found: dict[str, Any] = {}
    for mask in masks:
        found[mask] = {}
        for name, whole in subsets.items():
            masked = _scored(prm, [one.record for one in whole], mask, options)
            found[mask][name] = _compare([case_of(one) for one in whole], [case_of(one) for one in masked])
    return found


def _scored(prm: PRM, records: Sequence[StepRecord], mask: str, options: ScoringOptions) -> list[Scored]:
    how: dict[str, Any] = {"max_tokens": options.max_tokens, "aggregate": options.aggregate}
    scored = score_solutions(prm, masked_records(records, mask), **how)
    if mask != "earlier":
        return [
            dataclasses.replace(one, record=dataclasses.replace(one.record, labels=record.labels))
            for one, record in zip(scored, records, strict=True)
        ]
    values = iter(one.steps[0] for one in scored)
    steps = [tuple(next(values) for _ in record.steps) for record in records]
    return [Scored(record, own, min(own)) for record, own in zip(records, steps, strict=True)]


def _compare(whole: Sequence[Case], masked: Sequence[Case]) -> dict[str, Any]:
    both = [np.concatenate([np.asarray(case.scores, np.float32) for case in cases]) for cases in (whole, masked)]
    found: dict[str, Any] = {"correlation": float(compiled.spearman(*both))}
    auc = [step_quality(cases) for cases in (whole, masked)]
    if "skipped" not in auc[0]:
        found["auc"] = [one["auc"] for one in auc]
    f1 = [process_bench({"": cases}, resamples=0) for cases in (whole, masked)]
    if "skipped" not in f1[0]:
        found["first_error_f1"] = [one["average_f1"] for one in f1]
    return found


def _without(step: str, pattern: re.Pattern[str]) -> str:
    left = pattern.sub("", step)
    return left if left.strip() else step[-1:]


def _without_problem(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return ""
    last = prompt[-1] if prompt else None
    if isinstance(last, Mapping):
        return (*prompt[:-1], {**last, "content": ""})
    raise UserError("--mask problem takes away the text of problems, but these prompts are lists of token ids")
