"""A language model on a task: proposes the steps of solutions to search and reads them as text."""

import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.rollouts.engine import Engine, OnProgress, Request, Response, sample_all
from prm_jax.rollouts.prompt_tokens import encode_prompt
from prm_jax.rollouts.sampling_options import StepOptions
from prm_jax.search.language_model import Ask, Partial, Step

STREAMS = 1 << 14
"""Exclusive maximum of the number of requests per problem."""

WHOLE, STEP = 0, 1
"""Stop sets of the engine: for the rest of a solution, and for one step."""


class TaskPolicy:
    """An engine on a task; `propose` is what the searches of ``search.language_model`` call.

    The randomness of a request depends on the engine's key, the problem's number in the whole run and the request's
    stream: not on the chunk that the problem is in.

    Args:
      engine: with the stop sets of `stop_sets`; a solution must fit into its context.
      task: see ``rollouts.tasks``.
      steps: lengths of steps and solutions.
      tokenizer: of the model; the engine's when None.
      chat: wrap text prompts into the chat template.
      on_progress: called with the numbers of new responses and tokens as they arrive.

    Attributes:
      problems: of the current chunk.
      first: number of the chunk's first problem in the whole run.

    Raises:
      UserError: the task's steps do not end at fixed strings.
    """

    def __init__(
        self,
        engine: Engine,
        task: Any,
        steps: StepOptions,
        *,
        tokenizer: Any = None,
        chat: bool = False,
        on_progress: OnProgress = lambda responses, tokens: None,
    ) -> None:
        if engine.stops != stop_sets(task):
            raise ValueError(f"the engine has the stop sets {engine.stops}; expected {stop_sets(task)}, by stop_sets")
        self.engine, self.task, self.steps, self.chat, self.on_progress = engine, task, steps, chat, on_progress
        self.tokenizer = tokenizer or engine.tokenizer
        self.problems: Sequence[Any] = ()
        self.first = 0
        self._prompts: list[tuple[int, ...]] = []

    def check_prompts(self, problems: Sequence[Any]) -> None:
        """Encodes all prompts once, so that one that cannot be used is found before the work begins.

        Raises:
          UserError: a prompt that the tokenizer cannot encode, or that exceeds the context with its solution.
        """
        lengths = [len(self._encode(problem.prompt)) for problem in problems]
        if self.engine.context is None:
            return
        room = self.engine.context - self.steps.max_new_tokens
        long = [i for i, length in enumerate(lengths) if length > room]
        if long:
            others = f" (as do those of {len(long) - 1} others)" if len(long) > 1 else ""
            raise UserError(
                f"{problems[long[0]].id}: its prompt of {lengths[long[0]]} tokens and a solution of "
                f"--sampling.max-new-tokens {self.steps.max_new_tokens} exceed the model's context of "
                f"{self.engine.context} tokens{others}: lower that option, or leave such problems out"
            )
        self.engine.reserve(max(lengths, default=0) + self.steps.max_new_tokens)

    def begin(self, problems: Sequence[Any], first: int) -> None:
        """Makes a chunk of problems current; `first` is the number of its first problem in the whole run."""
        self.problems, self.first = problems, first
        self._prompts = [tuple(self._encode(problem.prompt)) for problem in problems]

    def propose(self, asks: Sequence[Ask], count: int, whole: bool) -> list[list[Step]]:
        """Steps after prefixes, or the rest of the solutions; see ``language_model.ProposeFn``."""
        going = [i for i, ask in enumerate(asks) if self.room(ask.partial) > 0]
        longest = self.steps.max_new_tokens if whole else self.steps.step_tokens
        requests = [
            self.request(asks[i].partial, self.number(asks[i]), sample, longest, WHOLE if whole else STEP)
            for i in going
            for sample in range(count)
        ]
        responses = iter(sample_all(self.engine, requests, self.on_progress))
        found: list[list[Step]] = [[] for _ in asks]
        for i in going:
            for _ in range(count):
                step, end = read_step(next(responses))
                ended = end == "eos" or self._ends(step.tokens)
                ended |= whole or len(step.tokens) >= self.room(asks[i].partial)
                found[i].append(step._replace(finished=ended))
        return found

    def room(self, partial: Partial) -> int:
        """How many more tokens the solution may have."""
        return self.steps.max_new_tokens - len(partial.tokens)

    def request(self, partial: Partial, number: int, sample: int, longest: int, stop: int) -> Request:
        """What is asked of the engine to continue a prefix.

        Args:
          partial: the prefix, not of maximum length.
          number: with `sample`, what the randomness depends on.
          sample: among the requests of this prefix and number.
          longest: tokens, at most.
          stop: stop set of the engine.
        """
        prompt = self._prompts[partial.question] + partial.tokens
        return Request(prompt, number, sample, min(longest, self.room(partial)), stop)

    def complete(self, partial: Partial) -> bool:
        """Whether the solution ended by itself: it was not cut off for its length or its number of steps."""
        short = len(partial.tokens) < self.steps.max_new_tokens
        return (partial.finished and short) or self._ends(partial.tokens)

    def text(self, partial: Partial) -> str:
        """The response as text, without special tokens."""
        return self.tokenizer.decode(list(partial.tokens), skip_special=True)

    def spans(self, partial: Partial) -> list[tuple[int, int]]:
        """Where the steps are in the text, cut as the task cuts it; [] while nothing but blanks is written."""
        return list(self.task.splitter(self.text(partial)))

    def forced(self, partial: Partial) -> tuple[tuple[int, int], ...]:
        """Spans of the text that the model did not write."""
        del partial
        return ()

    def texts(self, partial: Partial) -> tuple[str, ...]:
        """The text of each step."""
        text = self.text(partial)
        return tuple(text[start:end] for start, end in self.spans(partial))

    def split(self, partial: Partial) -> list[tuple[int, ...]]:
        """The token ids of each step: a token belongs to the step in which its text starts."""
        tokens = partial.tokens
        special = frozenset(self.tokenizer.special_ids)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, starts = "", []
        for token in tokens:
            starts.append(len(text))
            text += "" if token in special else decoder.decode(self.tokenizer.token_bytes(token))
        text += decoder.decode(b"", final=True)
        begins = [start for start, _ in self.spans(partial)] or [0]
        steps = np.clip(np.searchsorted(begins, starts, side="right") - 1, 0, len(begins) - 1)
        found = [
            tuple(token for token, own in zip(tokens, steps, strict=True) if own == step)
            for step in range(int(steps.max(initial=-1)) + 1)
        ]
        return found

    def number(self, ask: Ask) -> int:
        """A number for the request that no other request of the run has."""
        if not 0 <= ask.stream < STREAMS:
            raise ValueError(f"request number {ask.stream} of a problem; expected less than {STREAMS}")
        return (self.first + ask.partial.question) * STREAMS + ask.stream

    def _ends(self, tokens: tuple[int, ...]) -> bool:
        if not tokens or tokens[-1] in self.tokenizer.eos_ids:
            return True
        text = self.tokenizer.decode(list(tokens), skip_special=True) if self.task.stop else ""
        return any(stop in text for stop in self.task.stop)

    def _encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and self.chat:
            prompt = [{"role": "user", "content": prompt}]
        return encode_prompt(self.tokenizer, prompt)


def read_step(response: Response) -> tuple[Step, str]:
    """(an engine's response as a step that is not finished, how it ended)."""
    logp = 0.0 if response.logp is None else float(response.logp.sum(dtype=np.float64))
    return Step(tuple(response.tokens.tolist()), logp, False), response.end


def stop_sets(task: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stop sets that `TaskPolicy` needs: the task's own, and these together with the ends of steps.

    Raises:
      UserError: the task's steps do not end at fixed strings.
    """
    stop = tuple(task.stop)
    return stop, (*step_boundary(task.splitter), *stop)


def step_boundary(splitter: Any) -> tuple[str, ...]:
    """The strings that end a step.

    Raises:
      UserError: the splitter does not cut at fixed strings.
    """
    if splitter.boundaries is None:
        raise UserError(
            f"this task cuts steps by {splitter.how!r}; search needs steps that end at fixed strings: newline, "
            "blank or tag"
        )
    return tuple(splitter.boundaries)
