"""Sampled and judged responses, and the sampler that makes them from a task, a tokenizer and a model."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.problems import Problem, Task
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import DecodeOptions, ModelConfig, generate
from prm_jax.rollouts.engine import Request, Response, behaviour_logp, drawn_tokens, wait_for
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_source import EngineSource

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

    @property
    def samples_per_prompt(self) -> int:
        """G."""
        return len(self.texts) // max(len(self.problems), 1)

    def take(self, prompts: Sequence[int]) -> "Responses":
        """The groups of these prompts, in this order."""
        size = self.samples_per_prompt
        rows = (np.asarray(prompts, np.int64)[:, None] * size + np.arange(size)).reshape(-1)
        arrays = {name: value[rows] for name, value in self.arrays().items()}
        return Responses([self.problems[p] for p in prompts], texts=[self.texts[r] for r in rows], **arrays)

    def arrays(self) -> dict[str, Any]:
        """The arrays that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}

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
    return Responses(problems=problems, texts=[t for part in parts for t in part.texts], **joined)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples and judges responses: a task, a tokenizer, a model and fixed lengths.

    Attributes:
      task: gives verdicts and cuts responses into steps.
      tokenizer: of the model.
      config: the model's architecture.
      max_prompt_tokens: longest prompt; rows have ``max_prompt_tokens + max_new_tokens`` columns.
      max_new_tokens: longest response.
      engines: what samples; None: ``models.generate``.
    """

    task: Task
    tokenizer: Any
    config: ModelConfig
    max_prompt_tokens: int
    max_new_tokens: int
    engines: EngineSource | None = None

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
        sampling: SamplingOptions = SamplingOptions(),
        chunk: int | None = None,
    ) -> Responses:
        """Samples, decodes and judges.

        Args:
          params: the whole model's parameters.
          problems: P prompts, none longer than `max_prompt_tokens`.
          key: typed PRNG key, consumed.
          samples_per_prompt: G.
          sampling: temperature (0 is greedy decoding) and truncation.
          chunk: number of prompts that ``models.generate`` samples at once, each chunk with a key of its own; None:
            all with `key`.
        """
        prompts = self.prompts(problems)
        drawn = self._draw(params, prompts, key, samples_per_prompt, sampling, chunk)
        return self.judge(problems, prompts, drawn)

    def complete(
        self,
        params: Any,
        problems: Sequence[Problem],
        prefixes: Sequence[Sequence[int]],
        key: jax.Array,
        *,
        samples_per_prefix: int,
        sampling: SamplingOptions = SamplingOptions(),
        chunk: int | None = None,
    ) -> Responses:
        """Samples what follows partial responses, and judges the whole responses.

        Args:
          params: the whole model's parameters.
          problems: the problem of each prefix.
          prefixes: token ids of the part of the response that is already written, in the order of `problems`.
          key: typed PRNG key, consumed.
          samples_per_prefix: completions of each.
          sampling: temperature (0 is greedy decoding) and truncation.
          chunk: see `sample`.

        Returns:
          Responses with the prefixes as their problems; a response is cut at `max_new_tokens`, prefix included.
        """
        own = [self.encode(problem) for problem in problems]
        prompts = [[*prompt, *prefix] for prompt, prefix in zip(own, prefixes, strict=True)]
        limits = [self.max_new_tokens - len(prefix) for prefix in prefixes]
        drawn = self._draw(params, prompts, key, samples_per_prefix, sampling, chunk, limits)
        given = [list(prefix) for prefix in prefixes for _ in range(samples_per_prefix)]
        whole = [one.after(prefix, self.max_new_tokens) for one, prefix in zip(drawn, given, strict=True)]
        return self.judge(problems, own, whole)

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """The token ids of prompts.

        Raises:
          UserError: one is longer than `max_prompt_tokens`.
        """
        prompts = [self.encode(problem) for problem in problems]
        longest = max(map(len, prompts))
        if longest > self.max_prompt_tokens:
            raise UserError(
                f"a prompt has {longest} tokens, above the {self.max_prompt_tokens} of --rollout.max-prompt-tokens; "
                "leave it out or raise that option"
            )
        return prompts

    def judge(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], drawn: Sequence["Drawn"]
    ) -> Responses:
        """Lays responses out in rows ``[prompt][response][padding]``, cuts them into steps and verifies their answers.

        Args:
          problems: P.
          prompts: their token ids.
          drawn: P * G responses, prompt-major.
        """
        rows = _rows(prompts, drawn, self.max_prompt_tokens + self.max_new_tokens, self.tokenizer.pad_id or 0)
        step_ids, _, texts = step_ids_from_text(
            rows["tokens"], rows["mask"], self.tokenizer.token_bytes, self.task.splitter,
            special_ids=tuple(self.tokenizer.special_ids),
        )  # fmt: skip
        size = len(texts) // max(len(problems), 1)
        asked = [problem for problem in problems for _ in range(size)]
        verdicts = self.task.verify_many(asked, texts)
        return Responses(
            problems=list(problems),
            step_ids=np.where(rows["sampled"], step_ids, -1).astype(np.int32),
            texts=texts,
            outcome=np.asarray([verdict.score for verdict in verdicts], np.float32),
            usable=np.asarray([verdict.usable for verdict in verdicts], bool),
            finished=np.asarray([one.finished for one in drawn], bool),
            unanswered=np.asarray(["no answer" in verdict.detail for verdict in verdicts], bool),
            **rows,
        )

    def _draw(
        self, params: Any, prompts: Sequence[Sequence[int]], key: jax.Array, count: int, sampling: SamplingOptions,
        chunk: int | None, limits: Sequence[int] | None = None,
    ) -> list["Drawn"]:  # fmt: skip
        """`count` responses to each prompt; a response is at most as long as its prompt's limit."""
        limits = [self.max_new_tokens] * len(prompts) if limits is None else limits
        starts = range(0, len(prompts), chunk or max(len(prompts), 1))
        keys = [key if chunk is None else jax.random.fold_in(key, start) for start in starts]
        if self.engines is None:
            parts = [
                self._generate(params, prompts[start : start + starts.step], own, count, sampling, starts.step)
                for start, own in zip(starts, keys, strict=True)
            ]
            return [one for part in parts for one in part]
        engine = self.engines.prepare(params, sampling)
        tickets = []
        for start, own in zip(starts, keys, strict=True):
            self.engines.draw_with(own)
            requests = [
                Request(tuple(prompts[place]), place - start, sample, limits[place])
                for place in range(start, min(start + starts.step, len(prompts)))
                for sample in range(count)
            ]
            tickets += engine.submit(requests)
        return [Drawn.of(one) for one in wait_for(engine, tickets)]

    def _generate(
        self, params: Any, prompts: Sequence[Sequence[int]], key: jax.Array, count: int, sampling: SamplingOptions,
        size: int,
    ) -> list["Drawn"]:  # fmt: skip
        """One call of ``models.generate``, filled up to `size` prompts so that all calls have one shape."""
        filled = [*prompts, *[prompts[-1]] * (size - len(prompts))]
        samples = generate(
            self.config, params, filled, key, samples_per_prompt=count, max_new_tokens=self.max_new_tokens,
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, stop=self.task.stop,
            options=DecodeOptions(tokenizer=self.tokenizer),
        )  # fmt: skip
        arrays = jax.device_get((samples.tokens, samples.mask, samples.logp, samples.log_mass, samples.finished))
        tokens, mask, logp, mass, finished = (np.asarray(x) for x in arrays)
        return [
            Drawn(tokens[row][mask[row]], (logp - mass)[row][mask[row]], bool(finished[row]))
            for row in range(len(prompts) * count)
        ]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A response of n tokens before it is judged.

    Attributes:
      tokens: [n] int32.
      logp: [n] float32, see `Responses.behaviour_logp`.
      finished: whether it ended by itself.
      sampled: [n] bool, tokens that the model drew; None: all.
      version: [n] int32, of the weights; None: 0.
    """

    tokens: np.ndarray
    logp: np.ndarray
    finished: bool
    sampled: np.ndarray | None = None
    version: np.ndarray | None = None

    @staticmethod
    def of(response: Response) -> "Drawn":
        """A response of an engine."""
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


def _rows(prompts: Sequence[Sequence[int]], drawn: Sequence[Drawn], width: int, pad: int) -> dict[str, np.ndarray]:
    """Rows ``[prompt][response][padding]`` of a fixed width: the arrays of `Responses` that need no verdict."""
    size = len(drawn) // max(len(prompts), 1)
    shape = (len(drawn), width)
    rows: dict[str, np.ndarray] = {
        "tokens": np.full(shape, pad, np.int32),
        "mask": np.zeros(shape, bool),
        "behaviour_logp": np.zeros(shape, np.float32),
        "sampled": np.zeros(shape, bool),
        "version": np.zeros(shape, np.int32),
    }
    for row, one in enumerate(drawn):
        prompt = prompts[row // size]
        own = slice(len(prompt), len(prompt) + len(one.tokens))
        rows["tokens"][row, : own.start] = prompt
        rows["tokens"][row, own] = one.tokens
        rows["mask"][row, own] = True
        rows["behaviour_logp"][row, own] = one.logp
        rows["sampled"][row, own] = True if one.sampled is None else one.sampled
        rows["version"][row, own] = 0 if one.version is None else one.version
    return rows
