"""Sampled and judged responses, as arrays and texts, and how several processes exchange them."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prm_jax.data.problems import Problem
from prm_jax.rollouts.engine import Response, behaviour_logp, drawn_tokens
from prm_jax.rollouts.environments import Episode
from prm_jax.runs import processes

# Streams of randomness of one run, folded into its key, so that none depends on how often another is used.
ROLLOUT_STREAM, EVAL_STREAM, INIT_STREAM, PRETRAIN_STREAM, NOISE_STREAM, ADAPTER_STREAM, SOURCE_STREAM = range(7)


@dataclasses.dataclass(frozen=True)
class Responses:
    """Judged responses to P prompts, G each, prompt-major, as NumPy arrays.

    Attributes:
      problems: the P prompts' problems.
      tokens: [B, T] int32, rows ``[prompt][response][padding]``.
      mask: [B, T] bool, True on response tokens.
      step_ids: [B, T] int32, -1 off the sampled tokens of the response.
      texts: B responses, without end tokens.
      details: what the verifier says about each, such as the tests that fail; empty: nothing.
      outcome: [B] float32 in [0, 1].
      usable: [B] bool, False where the verifier itself failed.
      finished: [B] bool, False where the response was cut off at its maximum length.
      unanswered: [B] bool, True where the verifier found no answer in the response.
      behaviour_logp: [B, T] float32, log-probability with which each token was drawn, truncation included; NaN where
        unknown, 0 off the sampled tokens; None: unknown.
      sampled: [B, T] bool, response tokens that the model drew; None: all.
      version: [B, T] int32, version of the weights that drew each token, 0 off the response; None: all the same.
    """

    problems: Sequence[Problem]
    tokens: np.ndarray  # [B, T]
    mask: np.ndarray  # [B, T]
    step_ids: np.ndarray  # [B, T]
    texts: list[str]
    outcome: np.ndarray  # [B]
    usable: np.ndarray  # [B]
    finished: np.ndarray  # [B]
    unanswered: np.ndarray  # [B]
    behaviour_logp: np.ndarray | None = None  # [B, T]
    sampled: np.ndarray | None = None  # [B, T]
    version: np.ndarray | None = None  # [B, T]
    details: Sequence[str] = ()

    @property
    def samples_per_prompt(self) -> int:
        """G."""
        return len(self.texts) // max(len(self.problems), 1)

    def take(self, prompts: Sequence[int]) -> "Responses":
        """The groups of these prompts, in this order."""
        size = self.samples_per_prompt
        rows = (np.asarray(prompts, np.int64)[:, None] * size + np.arange(size)).reshape(-1)
        arrays = {name: value[rows] for name, value in self.arrays().items()}
        details = [self.details[int(r)] for r in rows] if self.details else ()
        return Responses(
            [self.problems[p] for p in prompts], texts=[self.texts[r] for r in rows], details=details, **arrays
        )

    def arrays(self) -> dict[str, Any]:
        """The arrays that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}

    def cut(self, columns: int) -> "Responses":
        """The first columns of all rows, without copying them."""
        parts = {name: array[:, :columns] for name, array in self.arrays().items() if array.ndim == 2}
        return dataclasses.replace(self, **parts)

    def confidences(self, pattern: str) -> np.ndarray:
        """[B] float32 in [0, 1]: the confidence that each response states, 1/2 where it states none.

        Args:
          pattern: regular expression whose first group is the number; a value above 1 is a percentage.
        """
        numbers = [_last_number(re.findall(pattern, text)) for text in self.texts]
        return np.clip([x / 100 if x > 1 else x for x in numbers], 0.0, 1.0).astype(np.float32)

    def solve_rates(self) -> np.ndarray:
        """[P] float32 mean outcome of each group, over responses whose verification worked; 0 without any."""
        outcome, usable = (x.reshape(len(self.problems), -1) for x in (self.outcome, self.usable))
        rates = np.where(usable, outcome, 0.0).sum(axis=1) / np.maximum(usable.sum(axis=1), 1)
        return rates.astype(np.float32)


def _last_number(texts: Sequence[str]) -> float:
    """The last text that is a number; 1/2 without one."""
    for text in reversed(texts):
        with contextlib.suppress(ValueError):
            return float(text)
    return 0.5


def concatenate(parts: Sequence[Responses]) -> Responses:
    """Joins the prompts of several responses; all must have the same G and T."""
    names = set.intersection(*(set(part.arrays()) for part in parts))
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    problems = [problem for part in parts for problem in part.problems]
    texts = [text for part in parts for text in part.texts]
    details = [detail for part in parts for detail in part.details]
    return Responses(problems=problems, texts=texts, details=details if len(details) == len(texts) else (), **joined)


def divided(problems: Sequence[Problem], respond: Callable[[slice], Responses]) -> Responses:
    """Responses to all problems, of which each process makes its own share; collective.

    Args:
      problems: P problems, the same in every process.
      respond: the responses to ``problems[share]``, where the share is not empty.

    Returns:
      All of them, in the order of the problems, in every process.
    """
    own = processes.share(len(problems))
    if own == slice(0, len(problems)):
        return respond(own)
    sent = sendable(respond(own)) if own.start < own.stop else None
    return joined_parts(problems, processes.gather(sent, name="responses"))


def sendable(responses: Responses) -> dict[str, Any]:
    """Everything but the problems, as `processes.gather` takes it."""
    return {"texts": responses.texts, "details": list(responses.details), **responses.arrays()}


def joined_parts(problems: Sequence[Problem], parts: Sequence[dict[str, Any] | None]) -> Responses:
    """The responses of several processes.

    Args:
      problems: of all of them, in the order of `parts`.
      parts: from `sendable`; None from a process without responses.
    """
    there = [part for part in parts if part is not None]
    names = set(there[0]) - {"texts", "details"}
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in there]) for name in names}
    texts, details = ([one for part in there for one in part[name]] for name in ("texts", "details"))
    return Responses(problems=list(problems), texts=texts, details=details, **joined)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A response of n tokens before it is judged.

    Attributes:
      tokens: [n] int32.
      logp: [n] float32, see `Responses.behaviour_logp`.
      finished: whether it ended by itself.
      sampled: [n] bool, tokens that the model drew; None: all.
      version: [n] int32, of the weights; None: 0.
      lost: its environment failed, so that nothing can be learned from it.
    """

    tokens: np.ndarray
    logp: np.ndarray
    finished: bool
    sampled: np.ndarray | None = None
    version: np.ndarray | None = None
    lost: bool = False

    @staticmethod
    def of(response: Response | Episode) -> "Drawn":
        """A response of an engine, or one in turns."""
        if isinstance(response, Episode):
            unknown, end = np.full(len(response.tokens), np.nan, np.float32), response.end
            return Drawn(
                response.tokens, unknown if response.logp is None else response.logp, end in ("done", "eos"),
                response.sampled, response.version, end == "failed",
            )  # fmt: skip
        return Drawn(
            response.tokens, behaviour_logp(response), response.end in ("eos", "stop"), drawn_tokens(response),
            response.version,
        )  # fmt: skip

    def after(self, prefix: Sequence[int], longest: int) -> "Drawn":
        """The response with tokens before it, cut at a length."""
        count = len(prefix)
        own = np.ones(len(self.tokens), bool) if self.sampled is None else self.sampled
        version = np.zeros(len(self.tokens), np.int32) if self.version is None else self.version
        return Drawn(
            np.concatenate([np.asarray(prefix, np.int32), self.tokens])[:longest],
            np.concatenate([np.zeros(count, np.float32), self.logp])[:longest],
            self.finished and count + len(self.tokens) <= longest,
            np.concatenate([np.zeros(count, bool), own])[:longest],
            np.concatenate([np.zeros(count, np.int32), version])[:longest],
        )
