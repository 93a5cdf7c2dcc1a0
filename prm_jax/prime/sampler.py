"""The sampler that makes judged responses from a task, a tokenizer and a model.

Of several processes, each samples and verifies its own share of the prompts, with the randomness of their numbers among
all prompts, and all of them get all responses: everything after the sampler is the same as with one process.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prm_jax.data.problems import Problem, Task
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import DecodeOptions, ModelConfig, generate
from prm_jax.prime.responses import Drawn, Responses, divided
from prm_jax.prime.turns import Turns
from prm_jax.rollouts.engine import Request, wait_for
from prm_jax.rollouts.prompt_tokens import encode_prompt
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_source import EngineSource


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

    def judge(self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], drawn: Sequence[Drawn]) -> Responses:
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

    def _draw(self, params: Any, draw: "_Draws", own: slice) -> list[Drawn]:
        """The responses to the prompts of a share, prompt-major."""
        if self.engines is None:
            return [one for chunk in draw.chunks(own) for one in self._generate(params, draw, chunk)]
        engine = self.engines.prepare(params, draw.sampling)
        player = None if self.turns is None else self.turns.player(engine, self.tokenizer)
        tickets = []
        for chunk in draw.chunks(own):
            self.engines.draw_with(chunk.key)
            places = [place for place in chunk.places for _ in range(draw.count)]
            requests = [
                Request(tuple(draw.prompts[place]), place - chunk.first, i % draw.count, draw.limits[place])
                for i, place in enumerate(places)
            ]
            if self.turns is None or player is None:
                tickets += engine.submit(requests)
            else:
                asked = zip(requests, places, strict=True)
                tickets += player.submit([self.turns.begin(one, draw.problems[place]) for one, place in asked])
        return [Drawn.of(one) for one in (wait_for(engine, tickets) if player is None else player.wait_for(tickets))]

    def _generate(self, params: Any, draw: "_Draws", chunk: "_Chunk") -> list[Drawn]:
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
