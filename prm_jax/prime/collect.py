"""From prompts to a batch of judged rollouts: sample, verify, filter by solve rate, lay out for training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.pipeline import PromptBuffer, PromptStream
from prm_jax.data.problems import Problem, Task
from prm_jax.data.selection import solve_rate_passes
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import DecodeOptions, ModelConfig, generate
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.step import PrimeBatch

# Streams of randomness of one run: folded into its key, so that none depends on how often another is used.
ROLLOUT_STREAM, EVAL_STREAM, INIT_STREAM, PRETRAIN_STREAM, NOISE_STREAM, ADAPTER_STREAM = range(6)


@dataclasses.dataclass(frozen=True)
class Responses:
    """Judged responses to P prompts, G each, prompt-major; arrays are NumPy's.

    Attributes:
      problems: the P prompts' problems.
      tokens: [B, T] int32, rows ``[prompt][response][padding]``.
      mask: [B, T] bool, True on response tokens.
      step_ids: [B, T] int32, -1 off the response.
      texts: B responses, without end tokens.
      outcome: [B] float32 in [0, 1].
      usable: [B] bool, False where the verifier itself failed.
      finished: [B] bool, False where the response was cut off at its longest.
    """

    problems: Sequence[Problem]
    tokens: np.ndarray  # [B, T]
    mask: np.ndarray  # [B, T]
    step_ids: np.ndarray  # [B, T]
    texts: list[str]
    outcome: np.ndarray  # [B]
    usable: np.ndarray  # [B]
    finished: np.ndarray  # [B]

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
        )

    def solve_rates(self) -> np.ndarray:
        """[P] float32 mean outcome of each group."""
        return self.outcome.reshape(len(self.problems), -1).mean(axis=1)


def concatenate(parts: Sequence[Responses]) -> Responses:
    """Joins the prompts of several responses; all must have the same G and T."""
    arrays = ("tokens", "mask", "step_ids", "outcome", "usable", "finished")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
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
        """Samples, decodes and judges.

        Args:
          params: the whole model's parameters.
          problems: P prompts, none longer than `max_prompt_tokens`.
          key: typed PRNG key, consumed.
          samples_per_prompt: G.
          temperature, top_k, top_p: as `models.generate`; temperature 0 takes the likeliest token.
        """
        prompts = [self.encode(problem) for problem in problems]
        longest = max(map(len, prompts))
        if longest > self.max_prompt_tokens:
            raise UserError(
                f"a prompt has {longest} tokens, more than the longest, {self.max_prompt_tokens}: leave it out"
                " or raise --rollout.max-prompt-tokens"
            )
        samples = generate(
            self.config,
            params,
            prompts,
            key,
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=self.task.stop,
            options=DecodeOptions(tokenizer=self.tokenizer),
        )
        response, response_mask, finished = jax.device_get((samples.tokens, samples.mask, samples.finished))
        tokens, mask = self._rows(prompts, np.asarray(response), np.asarray(response_mask, bool))
        step_ids, _, texts = step_ids_from_text(
            tokens, mask, self.tokenizer.token_bytes, self.task.splitter,
            special_ids=tuple(self.tokenizer.special_ids),
        )  # fmt: skip
        asked = [problem for problem in problems for _ in range(samples_per_prompt)]
        verdicts = self.task.verify_many(asked, texts)
        return Responses(
            problems=list(problems),
            tokens=tokens,
            mask=mask,
            step_ids=step_ids,
            texts=texts,
            outcome=np.asarray([verdict.score for verdict in verdicts], np.float32),
            usable=np.asarray([verdict.usable for verdict in verdicts], bool),
            finished=np.asarray(finished, bool),
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


def checker_rewards(task: Task, responses: Responses) -> np.ndarray:
    """Process rewards [B, T] float32 of the task's exact step checker: -1 on the last token of the first wrong step."""
    rewards = np.zeros(responses.mask.shape, np.float32)
    size = responses.samples_per_prompt
    for row, text in enumerate(responses.texts):
        labels = task.step_labels(responses.problems[row // size], text)
        if labels is None:
            raise UserError(f"the task {task.name!r} cannot check the steps of a response")
        if False in labels:
            columns = np.flatnonzero(responses.step_ids[row] == labels.index(False))
            rewards[row, columns[-1:]] = -1.0
    return rewards


def to_batch(responses: Responses, keep: np.ndarray, process: np.ndarray | None = None) -> PrimeBatch:
    """The training step's arrays; `keep` [P] says which groups count, `process` [B, T] is `PrimeBatch.process`."""
    size = responses.samples_per_prompt
    arrays: dict[str, Any] = {
        "tokens": responses.tokens,
        "mask": responses.mask,
        "keep": np.repeat(np.asarray(keep, bool), size) & responses.usable,
        "outcome": responses.outcome,
        "group_ids": np.repeat(np.arange(len(responses.problems), dtype=np.int32), size),
        "step_ids": responses.step_ids,
        "process": process,
        "start": _floor_to_power_of_two(int(responses.mask.argmax(axis=1).min())),
    }
    return PrimeBatch(**arrays)


def _floor_to_power_of_two(column: int) -> int:
    """A static shape may not follow every prompt's length, or each would compile the step anew."""
    return 1 << (column.bit_length() - 1) if column >= 8 else 0


def passing_groups(responses: Responses, options: RolloutOptions) -> np.ndarray:
    """[P] bool: solve rate within the bounds, and no cut-off response if `options` say so."""
    shape = (len(responses.problems), responses.samples_per_prompt)
    return solve_rate_passes(
        responses.outcome.reshape(shape),
        low=options.solve_rate_low,
        high=options.solve_rate_high,
        truncated=~responses.finished.reshape(shape) if options.drop_truncated else None,
        usable=responses.usable.reshape(shape),
    )


@dataclasses.dataclass
class Collector:
    """Collects one training step's rollouts through the solve-rate filter (arXiv 2502.01456, section 3.2).

    All of its state is where it stands in the prompt stream and two counters; they go into the checkpoint.

    Attributes:
      sampler: samples and judges.
      stream: prompts in order.
      options: sizes, filter.
      key: the run's key; every step folds its number into it.
      checker: give every batch the process rewards of the task's step checker.
      buffer: the cursor into the stream, and prompts that passed a filter but were not needed.
      sampled: responses sampled so far, whether used or not.
      too_long: prompts left out so far because they exceed the longest.
    """

    sampler: Sampler
    stream: PromptStream
    options: RolloutOptions
    key: jax.Array
    checker: bool = False
    buffer: PromptBuffer = PromptBuffer()
    sampled: int = 0
    too_long: int = 0

    def collect(
        self, params: Any, step: int, *, on_wait: Callable[[str], None] = lambda text: None
    ) -> tuple[PrimeBatch, Responses, dict[str, float]]:
        """Rollouts of one step under the policy `params`.

        Returns:
          (batch of ``prompts_per_step * samples_per_prompt`` rows, the same as text and arrays, metrics).
        """
        options = self.options
        key = jax.random.fold_in(jax.random.fold_in(self.key, ROLLOUT_STREAM), step)
        before = self.sampled
        if options.filter == "resample":
            chosen, keep, rates = self._resample(params, key, on_wait)
            passed = keep
        else:
            factor = options.oversample_factor if options.filter == "oversample" else 1
            _, problems = self._prompts(options.prompts_per_step * factor)
            drawn = self._sample(params, problems, key)
            passed = passing_groups(drawn, options)
            rates = drawn.solve_rates()
            if options.filter == "oversample":
                # Passing prompts first, otherwise in order; failing ones fill up, so that shapes are static.
                order = np.argsort(~passed, kind="stable")[: options.prompts_per_step]
                chosen, keep = drawn.take(order.tolist()), np.ones(len(order), bool)
                passed = passed[order]
            else:
                chosen, keep = drawn, passed
                if options.filter == "none":
                    keep = passed = np.ones(len(passed), bool)
        batch = to_batch(chosen, keep, checker_rewards(self.sampler.task, chosen) if self.checker else None)
        lengths = chosen.mask.sum(axis=1)
        metrics = {
            "rollout/solve_rate": float(rates.mean()),
            "rollout/kept_groups": float(np.mean(passed)),
            "rollout/too_long": float(self.too_long),
            "rollout/mixed_groups": float(np.mean((rates > 0) & (rates < 1))),
            "rollout/length": float(lengths.mean()),
            "rollout/truncated": float(1.0 - chosen.finished.mean()),
            "rollout/verifier_errors": float(np.sum(~chosen.usable)),
            "rollout/sampled": float(self.sampled - before),
        }
        return batch, chosen, metrics

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs, as JSON values."""
        return {
            "prompts": self.buffer.state(self.stream),
            "sampled": self.sampled,
            "too_long": self.too_long,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a saved state."""
        self.buffer = PromptBuffer.from_state(state["prompts"], self.stream)
        self.sampled, self.too_long = state["sampled"], state["too_long"]

    def _prompts(self, count: int) -> tuple[list[int], list[Problem]]:
        """(positions in the stream, problems) of the next prompts that are short enough."""
        positions: list[int] = []
        problems: list[Problem] = []
        longest, skipped = self.sampler.max_prompt_tokens, 0
        while len(problems) < count:
            places, drawn, self.buffer = self.buffer.draw(self.stream, count - len(problems))
            fitting = [index for index, problem in enumerate(drawn) if self.sampler.fits(problem)]
            skipped += len(drawn) - len(fitting)
            positions += [places[index] for index in fitting]
            problems += [drawn[index] for index in fitting]
            if not problems and skipped > len(self.stream.problems):
                raise UserError(
                    f"every prompt of the task {self.sampler.task.name!r} is longer than {longest} tokens; "
                    "raise --rollout.max-prompt-tokens"
                )
        self.too_long += skipped
        return positions, problems

    def _sample(self, params: Any, problems: Sequence[Problem], key: jax.Array) -> Responses:
        options = self.options
        responses = self.sampler.sample(
            params, problems, key, samples_per_prompt=options.samples_per_prompt,
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        )  # fmt: skip
        self.sampled += len(responses.texts)
        if options.outcome_noise:
            flip_key = np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, 0), NOISE_STREAM)))
            flips = np.random.default_rng(flip_key.tolist()).random(len(responses.texts))
            wrong = flips < options.outcome_noise
            outcome = np.where(wrong, 1.0 - responses.outcome, responses.outcome).astype(np.float32)
            responses = dataclasses.replace(responses, outcome=outcome)
        return responses

    def _resample(
        self, params: Any, key: jax.Array, on_wait: Callable[[str], None]
    ) -> tuple[Responses, np.ndarray, np.ndarray]:
        """Samples rounds of prompts until enough pass; surplus passing prompts are put back."""
        options, wanted = self.options, self.options.prompts_per_step
        parts: list[Responses] = []
        failed: list[Responses] = []
        positions: list[int] = []  # of passing prompts
        rates: list[np.ndarray] = []
        for turn in range(options.max_resample_rounds):
            places, problems = self._prompts(wanted)
            drawn = self._sample(params, problems, jax.random.fold_in(key, turn))
            passed = passing_groups(drawn, options)
            rates.append(drawn.solve_rates())
            parts.append(drawn.take(np.flatnonzero(passed).tolist()))
            failed.append(drawn.take(np.flatnonzero(~passed).tolist()))
            positions += np.asarray(places)[passed].tolist()
            if len(positions) >= wanted:
                break
            on_wait(f"{len(positions)} of {wanted} prompts pass the filter after {turn + 1} rounds")
        self.buffer = self.buffer.put_back(positions[wanted:])
        chosen = concatenate(parts + failed).take(list(range(wanted)))
        return chosen, np.arange(wanted) < len(positions), np.concatenate(rates)
