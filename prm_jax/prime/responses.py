"""Sampled and judged responses, and the sampler that makes them from a task, a tokenizer and a model.

Of several processes, each samples and verifies its own share of the prompts, with the randomness of their numbers among
all prompts, and all of them get all responses: everything after the sampler is the same as with one process.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prm_jax.data.problems import Problem, Task
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import DecodeOptions, ModelConfig, generate
from prm_jax.prime.turns import Turns
from prm_jax.rollouts.engine import Request, Response, behaviour_logp, drawn_tokens, wait_for
from prm_jax.rollouts.environments import Episode, EpisodeStart
from prm_jax.rollouts.prompt_tokens import encode_prompt
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_source import EngineSource
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
class Sampler:
    """Samples and judges responses: a task, a tokenizer, a model and fixed lengths.

    Attributes:
      task: gives verdicts and cuts responses into steps.
      tokenizer: of the model.
      config: the model's architecture.
      max_prompt_tokens: longest prompt; rows have ``max_prompt_tokens + max_new_tokens`` columns.
      max_new_tokens: longest response.
      engines: what samples; None: ``models.generate``.
      turns: what answers to the actions of a response; None: responses have no turns.
    """

    task: Task
    tokenizer: Any
    config: ModelConfig
    max_prompt_tokens: int
    max_new_tokens: int
    engines: EngineSource | None = None
    turns: Turns | None = None

    def encode(self, problem: Problem) -> list[int]:
        """The token ids of a problem's prompt."""
        return encode_prompt(self.tokenizer, problem.prompt)

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
        """Samples, decodes and judges; collective where there are several processes.

        Args:
          params: the whole model's parameters, on devices of this process.
          problems: P prompts, none longer than `max_prompt_tokens`.
          key: typed PRNG key, consumed.
          samples_per_prompt: G.
          sampling: temperature (0 is greedy decoding) and truncation.
          chunk: number of prompts that ``models.generate`` samples at once, each chunk with a key of its own; None:
            all with `key`.
        """
        prompts = self.prompts(problems)
        limits = [self.max_new_tokens] * len(prompts)
        draw = _Draws(problems, prompts, limits, key, chunk, samples_per_prompt, sampling)
        return divided(
            problems, lambda own: self.judge(problems[own], prompts[own], self._draw(params, draw, own))
        )  # fmt: skip

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
        """Samples what follows partial responses, and judges the whole responses; collective as `sample` is.

        Args:
          params: the whole model's parameters, on devices of this process.
          problems: the problem of each prefix.
          prefixes: token ids of the part of the response that is already written, in the order of `problems`.
          key: typed PRNG key, consumed.
          samples_per_prefix: completions of each.
          sampling: temperature (0 is greedy decoding) and truncation.
          chunk: see `sample`.

        Returns:
          Responses with the prefixes as their problems; a response is cut at `max_new_tokens`, prefix included.
        """
        if self.turns is not None:
            raise UserError("a part of a response in turns cannot be continued: choose another --reward.source")
        own = [self.encode(problem) for problem in problems]
        prompts = [[*prompt, *prefix] for prompt, prefix in zip(own, prefixes, strict=True)]
        limits = [self.max_new_tokens - len(prefix) for prefix in prefixes]
        draw = _Draws(problems, prompts, limits, key, chunk, samples_per_prefix, sampling)

        def respond(part: slice) -> Responses:
            given = [list(prefix) for prefix in prefixes[part] for _ in range(samples_per_prefix)]
            drawn = zip(self._draw(params, draw, part), given, strict=True)
            whole = [one.after(prefix, self.max_new_tokens) for one, prefix in drawn]
            return self.judge(problems[part], own[part], whole)

        return divided(problems, respond)

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
            details=[verdict.detail for verdict in verdicts],
            outcome=np.asarray([verdict.score for verdict in verdicts], np.float32),
            usable=np.asarray([v.usable and not one.lost for v, one in zip(verdicts, drawn, strict=True)], bool),
            finished=np.asarray([one.finished for one in drawn], bool),
            unanswered=np.asarray(["no answer" in verdict.detail for verdict in verdicts], bool),
            **rows,
        )

    def _draw(self, params: Any, draw: "_Draws", own: slice) -> list["Drawn"]:
        """The responses to the prompts of a share, prompt-major."""
        if self.engines is None:
            return [one for chunk in draw.chunks(own) for one in self._generate(params, draw, chunk)]
        engine = self.engines.prepare(params, draw.sampling)
        if self.turns is not None:
            return self._play(engine, draw, own)
        tickets = []
        for chunk in draw.chunks(own):
            self.engines.draw_with(chunk.key)
            requests = [
                Request(tuple(draw.prompts[place]), place - chunk.first, sample, draw.limits[place])
                for place in chunk.places
                for sample in range(draw.count)
            ]
            tickets += engine.submit(requests)
        return [Drawn.of(one) for one in wait_for(engine, tickets)]

    def _play(self, engine: Any, draw: "_Draws", own: slice) -> list["Drawn"]:
        """The same in turns, each response with an environment of its own."""
        assert self.turns is not None and self.engines is not None
        found = []
        for chunk in draw.chunks(own):
            self.engines.draw_with(chunk.key)
            starts = [
                EpisodeStart(
                    tuple(draw.prompts[place]), place - chunk.first, sample, self.turns.start(draw.problems[place])
                )
                for place in chunk.places
                for sample in range(draw.count)
            ]
            found += [Drawn.played(one) for one in self.turns.draw(engine, self.tokenizer, starts)]
        return found

    def _generate(self, params: Any, draw: "_Draws", chunk: "_Chunk") -> list["Drawn"]:
        """One call of ``models.generate``, filled up so that all calls of one process have one shape."""
        places = [*chunk.places, *[chunk.places[-1]] * (chunk.size - len(chunk.places))]
        samples = generate(
            self.config, params, [draw.prompts[place] for place in places], chunk.key, samples_per_prompt=draw.count,
            max_new_tokens=self.max_new_tokens, temperature=draw.sampling.temperature, top_k=draw.sampling.top_k,
            top_p=draw.sampling.top_p, stop=self.task.stop,
            options=DecodeOptions(tokenizer=self.tokenizer, prompt_ids=[place - chunk.first for place in places]),
        )  # fmt: skip
        arrays = jax.device_get((samples.tokens, samples.mask, samples.logp, samples.log_mass, samples.finished))
        tokens, mask, logp, mass, finished = (np.asarray(x) for x in arrays)
        return [
            Drawn(tokens[row][mask[row]], (logp - mass)[row][mask[row]], bool(finished[row]))
            for row in range(len(chunk.places) * draw.count)
        ]


class _Chunk(NamedTuple):
    """Prompts that draw with one key.

    Attributes:
      key: typed PRNG key.
      first: place whose prompt has number 0 under this key.
      places: of the prompts.
      size: number of prompts of a full chunk.
    """

    key: jax.Array
    first: int
    places: range
    size: int


@dataclasses.dataclass(frozen=True)
class _Draws:
    """What is drawn: prompts with maximum lengths of their responses, see `Sampler.sample`."""

    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]
    key: jax.Array
    chunk: int | None
    count: int
    sampling: SamplingOptions

    def chunks(self, own: slice) -> Iterator[_Chunk]:
        """The chunks of a share of the prompts."""
        if self.chunk is None:
            yield _Chunk(self.key, 0, range(own.start, own.stop), own.stop - own.start)
            return
        for first in range(own.start - own.start % self.chunk, own.stop, self.chunk):
            places = range(max(first, own.start), min(first + self.chunk, own.stop))
            size = min(self.chunk, own.stop - own.start)
            yield _Chunk(jax.random.fold_in(self.key, first), first, places, size)


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
    def played(episode: Episode) -> "Drawn":
        """A response in turns."""
        logp = np.full(len(episode.tokens), np.nan, np.float32) if episode.logp is None else episode.logp
        return Drawn(
            episode.tokens, logp, episode.end in ("done", "eos"), episode.sampled, episode.version,
            episode.end == "failed",
        )  # fmt: skip

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
