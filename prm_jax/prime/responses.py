"""Sampled and judged responses, and the sampler that makes them from a task, a tokenizer and a model.

Of several processes, each samples and verifies its own share of the prompts, with the randomness of their numbers among
all prompts, and all of them get all responses: everything behind the sampler is the same as with one process.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.problems import Problem, Task
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import DecodeOptions, ModelConfig, generate
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
      step_ids: [B, T] int32, -1 off the response.
      texts: B responses, without end tokens.
      outcome: [B] float32 in [0, 1].
      usable: [B] bool, False where the verifier itself failed.
      finished: [B] bool, False where the response was cut off at its maximum length.
      unanswered: [B] bool, True where the verifier found no answer in the response.
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

    @property
    def samples_per_prompt(self) -> int:
        """G."""
        return len(self.texts) // max(len(self.problems), 1)

    def take(self, prompts: Sequence[int]) -> "Responses":
        """The groups of these prompts, in this order."""
        size = self.samples_per_prompt
        rows = (np.asarray(prompts, np.int64)[:, None] * size + np.arange(size)).reshape(-1)
        return Responses(
            problems=[self.problems[p] for p in prompts],
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            step_ids=self.step_ids[rows],
            texts=[self.texts[r] for r in rows],
            outcome=self.outcome[rows],
            usable=self.usable[rows],
            finished=self.finished[rows],
            unanswered=self.unanswered[rows],
        )

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
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    problems = [problem for part in parts for problem in part.problems]
    return Responses(problems=problems, texts=[t for part in parts for t in part.texts], **joined)


_ARRAYS = ("tokens", "mask", "step_ids", "outcome", "usable", "finished", "unanswered")


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
    sent: dict[str, Any] | None = None
    if own.start < own.stop:
        made = respond(own)
        sent = {"texts": made.texts, **{name: getattr(made, name) for name in _ARRAYS}}
    parts = [part for part in processes.gather(sent, name="responses") if part is not None]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _ARRAYS}
    return Responses(problems=list(problems), texts=[text for part in parts for text in part["texts"]], **joined)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples and judges responses: a task, a tokenizer, a model and fixed lengths.

    Attributes:
      task: gives verdicts and cuts responses into steps.
      tokenizer: of the model.
      config: the model's architecture.
      max_prompt_tokens: longest prompt; rows have ``max_prompt_tokens + max_new_tokens`` columns.
      max_new_tokens: longest response.
    """

    task: Task
    tokenizer: Any
    config: ModelConfig
    max_prompt_tokens: int
    max_new_tokens: int

    def encode(self, problem: Problem) -> list[int]:
        """The token ids of a problem's prompt."""
        prompt: Any = problem.prompt
        if isinstance(prompt, str):
            return list(self.tokenizer.encode(prompt, add_special=True))
        if prompt and isinstance(prompt[0], int):
            return list(prompt)
        return list(self.tokenizer.chat([dict(message) for message in prompt]))

    def fitting(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those whose prompts are within the longest."""
        return [problem for problem in problems if self.fits(problem)]

    def fits(self, problem: Problem) -> bool:
        """Whether the prompt is within the longest."""
        return 0 < len(self.encode(problem)) <= self.max_prompt_tokens

    def prompt_text(self, problem: Problem) -> str:
        """A problem's prompt for reading."""
        return problem.prompt if isinstance(problem.prompt, str) else self.tokenizer.decode(self.encode(problem))

    def sample(
        self,
        params: Any,
        problems: Sequence[Problem],
        key: jax.Array,
        *,
        samples_per_prompt: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Responses:
        """Samples, decodes and judges; collective where there are several processes.

        Args:
          params: the whole model's parameters, on devices of this process.
          problems: P prompts, none longer than `max_prompt_tokens`.
          key: typed PRNG key, consumed.
          samples_per_prompt: G.
          temperature, top_k, top_p: as `models.generate`; temperature 0 is greedy decoding.
        """
        prompts = [self.encode(problem) for problem in problems]
        longest = max(map(len, prompts))
        if longest > self.max_prompt_tokens:
            raise UserError(
                f"a prompt has {longest} tokens, above the {self.max_prompt_tokens} of --rollout.max-prompt-tokens; "
                "leave it out or raise that option"
            )

        def respond(own: slice) -> Responses:
            samples = generate(
                self.config, params, prompts[own], key, samples_per_prompt=samples_per_prompt,
                max_new_tokens=self.max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                stop=self.task.stop, options=self._decode_options(own),
            )  # fmt: skip
            response, response_mask, finished = jax.device_get((samples.tokens, samples.mask, samples.finished))
            tokens, mask = self._rows(prompts[own], np.asarray(response), np.asarray(response_mask, bool))
            return self._judge(problems[own], tokens, mask, np.asarray(finished, bool))

        return divided(problems, respond)

    def complete(
        self,
        params: Any,
        problems: Sequence[Problem],
        prefixes: Sequence[Sequence[int]],
        key: jax.Array,
        *,
        samples_per_prefix: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Responses:
        """Samples what follows partial responses, and judges the whole responses; collective as `sample` is.

        Args:
          params: the whole model's parameters, on devices of this process.
          problems: the problem of each prefix.
          prefixes: token ids of the part of the response that is already written, in the order of `problems`.
          key: typed PRNG key, consumed.
          samples_per_prefix: completions of each.
          temperature, top_k, top_p: as `models.generate`.

        Returns:
          Responses with the prefixes as their problems; a response is cut at `max_new_tokens`, prefix included.
        """
        own = [self.encode(problem) for problem in problems]
        prompts = [[*prompt, *prefix] for prompt, prefix in zip(own, prefixes, strict=True)]

        def respond(part: slice) -> Responses:
            samples = generate(
                self.config, params, prompts[part], key, samples_per_prompt=samples_per_prefix,
                max_new_tokens=self.max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                stop=self.task.stop, options=self._decode_options(part),
            )  # fmt: skip
            response, response_mask, finished = jax.device_get((samples.tokens, samples.mask, samples.finished))
            wide = dataclasses.replace(self, max_prompt_tokens=self.max_prompt_tokens + self.max_new_tokens)
            tokens, mask = wide._rows(prompts[part], np.asarray(response), np.asarray(response_mask, bool))
            starts = np.repeat([len(prompt) for prompt in own[part]], samples_per_prefix)[:, None]
            ends = np.repeat([len(prompt) for prompt in prompts[part]], samples_per_prefix)[:, None]
            columns = np.arange(tokens.shape[1])[None, :]
            mask |= (columns >= starts) & (columns < ends)
            allowed = columns < starts + self.max_new_tokens
            cut = (mask & ~allowed).any(axis=1)
            return self._judge(problems[part], tokens, mask & allowed, np.asarray(finished, bool) & ~cut)

        return divided(problems, respond)

    def _decode_options(self, part: slice) -> DecodeOptions:
        """Prompts draw by their numbers among all, so that samples do not depend on how they are divided."""
        return DecodeOptions(tokenizer=self.tokenizer, prompt_ids=range(part.start, part.stop))

    def _judge(
        self, problems: Sequence[Problem], tokens: np.ndarray, mask: np.ndarray, finished: np.ndarray
    ) -> Responses:
        """Cuts responses into steps and verifies their answers."""
        step_ids, _, texts = step_ids_from_text(
            tokens, mask, self.tokenizer.token_bytes, self.task.splitter,
            special_ids=tuple(self.tokenizer.special_ids),
        )  # fmt: skip
        size = len(texts) // max(len(problems), 1)
        asked = [problem for problem in problems for _ in range(size)]
        verdicts = self.task.verify_many(asked, texts)
        return Responses(
            problems=list(problems),
            tokens=tokens,
            mask=mask,
            step_ids=step_ids,
            texts=texts,
            outcome=np.asarray([verdict.score for verdict in verdicts], np.float32),
            usable=np.asarray([verdict.usable for verdict in verdicts], bool),
            finished=finished,
            unanswered=np.asarray(["no answer" in verdict.detail for verdict in verdicts], bool),
        )

    def _rows(
        self, prompts: Sequence[Sequence[int]], response: np.ndarray, response_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lays ``[prompt][response][padding]`` out in rows of the fixed width."""
        width = self.max_prompt_tokens + self.max_new_tokens
        size = response.shape[0] // len(prompts)
        lengths = np.repeat([len(prompt) for prompt in prompts], size)
        tokens = np.full((response.shape[0], width), self.tokenizer.pad_id or 0, np.int32)
        for index, prompt in enumerate(prompts):
            tokens[index * size : (index + 1) * size, : len(prompt)] = prompt
        counts = response_mask.sum(axis=1)
        columns = np.arange(width)[None, :] - lengths[:, None]  # [B, T], position within the response
        mask = (columns >= 0) & (columns < counts[:, None])
        source = np.clip(columns, 0, response.shape[1] - 1)
        tokens = np.where(mask, np.take_along_axis(response, source, axis=1), tokens)
        return tokens, mask
