"""From prompts to the batch of one step: sample, verify, filter by solve rate, ask the source, lay out for training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax import rl
from prm_jax.data.pipeline import PromptBuffer, PromptStream
from prm_jax.data.problems import Problem
from prm_jax.data.selection import solve_rate_passes
from prm_jax.errors import UserError
from prm_jax.prime.batch import Batch
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import (
    NOISE_STREAM,
    ROLLOUT_STREAM,
    SOURCE_STREAM,
    Responses,
    Sampler,
    concatenate,
)
from prm_jax.prime.sources.base import observe, on_host
from prm_jax.runs.stopping import DivergedRun


def to_batch(
    responses: Responses,
    keep: np.ndarray,
    *,
    process: np.ndarray | None = None,
    initial_value: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Batch:
    """The training step's arrays; `keep` [P] says which groups count, the rest are fields of `Batch`."""
    size = responses.samples_per_prompt
    arrays: dict[str, Any] = {
        "tokens": responses.tokens,
        "mask": responses.mask,
        "keep": np.repeat(np.asarray(keep, bool), size) & responses.usable,
        "outcome": responses.outcome,
        "group_ids": np.repeat(np.arange(len(responses.problems), dtype=np.int32), size),
        "step_ids": responses.step_ids,
        "judged": responses.usable,
        "process": process,
        "initial_value": initial_value,
        "confidence": confidence,
        "weights": weights,
        "start": _floor_to_power_of_two(int(responses.mask.argmax(axis=1).min())),
    }
    return Batch(**arrays)


def _floor_to_power_of_two(column: int) -> int:
    """A static shape must not follow every prompt's length, or each would compile the step again."""
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
class Collected:
    """The batch of one step, as arrays and as text.

    Attributes:
      arrays: what the compiled step takes.
      responses: the same responses on the host.
      metrics: of sampling and verification.
      empty: no row counts; nothing is learned from this batch.
      rewards: [B, T] process rewards, set once the step has been dispatched; None until then.
    """

    arrays: Batch
    responses: Responses
    metrics: dict[str, float]
    empty: bool
    rewards: Any = None


@dataclasses.dataclass
class Collector:
    """Collects the rollouts of each step through the solve-rate filter (arXiv 2502.01456, section 3.2).

    Its whole state is its position in the prompt stream and a few counters, which go into the checkpoint.

    Attributes:
      sampler: samples and verifies.
      stream: prompts in order.
      options: sizes, filter.
      key: the run's key; every step folds its number into it.
      policy_params: training state -> the policy's whole parameters.
      source: asked for rewards on the host where it computes any there.
      confidence_pattern: regular expression of stated confidences; empty: none are read.
      max_empty_steps: consecutive empty steps after which the run stops.
      say: gets one-line messages.
      buffer: cursor into the stream, and prompts that passed a filter but were not needed.
      sampled: responses sampled so far, whether used or not.
      for_source: those of them that only the source used, in its warm-up or for its rewards.
      too_long: prompts left out so far because they exceed the maximum length.
      empty_steps: consecutive steps without a prompt to learn from.
    """

    sampler: Sampler
    stream: PromptStream
    options: RolloutOptions
    key: jax.Array
    policy_params: Callable[[Any], Any]
    source: Any = None
    confidence_pattern: str = ""
    max_empty_steps: int = 20
    say: Callable[[str], None] = lambda text: None
    buffer: PromptBuffer = PromptBuffer()
    sampled: int = 0
    for_source: int = 0
    too_long: int = 0
    empty_steps: int = 0
    needs_state = True

    def draw(self, state: Any, step: int) -> Collected:
        """The batch of a step, sampled from the policy of `state`; `step` steps are complete.

        Raises:
          DivergedRun: too many consecutive steps without a prompt to learn from.
        """
        collected = self.collect(self.policy_params(state), step)
        if not collected.empty:
            self.empty_steps = 0
            return collected
        self.empty_steps += 1
        self.say(f"step {step + 1}: no prompt passes the solve-rate filter; nothing is learned")
        if self.empty_steps >= self.max_empty_steps:
            low, high = self.options.solve_rate_low, self.options.solve_rate_high
            raise DivergedRun(
                f"{self.empty_steps} steps in a row had no prompt with a solve rate in [{low:g}, {high:g}]: the task "
                "is too hard or too easy for the policy; change the task, --rollout.solve-rate-low or "
                "--rollout.solve-rate-high"
            )
        return collected

    def collect(self, params: Any, step: int) -> Collected:
        """Rollouts of one step under the policy `params`: ``prompts_per_step * samples_per_prompt`` rows."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, ROLLOUT_STREAM), step)
        before = self.sampled
        chosen, keep, passed, rates = self._chosen(params, key)
        weights = self._weights(chosen)
        observed = None
        if self.source is not None and on_host(self.source):
            source_key = jax.random.fold_in(jax.random.fold_in(self.key, SOURCE_STREAM), step)
            observed = observe(self.source, chosen, self.sampler, params, source_key)
            self.sampled += observed.sampled
            self.for_source += observed.sampled
        batch = to_batch(
            chosen, keep, weights=weights,
            process=None if observed is None else observed.process,
            initial_value=None if observed is None else observed.initial_value,
            confidence=chosen.confidences(self.confidence_pattern) if self.confidence_pattern else None,
        )  # fmt: skip
        metrics = {
            "rollout/solve_rate": float(rates.mean()),
            "rollout/kept_groups": float(np.mean(passed)),
            "rollout/too_long": float(self.too_long),
            "rollout/mixed_groups": float(np.mean((rates > 0) & (rates < 1))),
            "rollout/length": float(chosen.mask.sum(axis=1).mean()),
            "rollout/truncated": float(1.0 - chosen.finished.mean()),
            "rollout/verifier_errors": float(np.sum(~chosen.usable)),
            "rollout/unanswered": float(chosen.unanswered.mean()),
            "rollout/sampled": float(self.sampled - before),
            "rollouts": float(self.sampled),
        }
        return Collected(batch, chosen, metrics, empty=not np.asarray(batch.keep).any())

    def position(self) -> dict[str, Any]:
        """Everything that a checkpoint needs, as JSON values."""
        return {
            "prompts": self.buffer.state(self.stream),
            "sampled": self.sampled,
            "for_source": self.for_source,
            "too_long": self.too_long,
            "empty_steps": self.empty_steps,
        }

    def restore(self, position: dict[str, Any]) -> None:
        """Continues from a saved position."""
        self.buffer = PromptBuffer.from_state(position["prompts"], self.stream)
        self.sampled, self.too_long = position["sampled"], position["too_long"]
        self.for_source, self.empty_steps = position["for_source"], position["empty_steps"]

    def _chosen(self, params: Any, key: jax.Array) -> tuple[Responses, np.ndarray, np.ndarray, np.ndarray]:
        """(responses, groups that count [P], groups that pass the filter [P], solve rates of all groups drawn)."""
        options = self.options
        if options.filter == "resample":
            chosen, keep, rates = self._resample(params, key)
            return chosen, keep, keep, rates
        factor = options.oversample_factor if options.filter == "oversample" else 1
        _, problems = self._prompts(options.prompts_per_step * factor)
        drawn = self._sample(params, problems, key)
        passed, rates = passing_groups(drawn, options), drawn.solve_rates()
        if options.filter == "oversample":
            # Passing prompts first, otherwise in order; failing ones as filler, so that shapes are static.
            order = np.argsort(~passed, kind="stable")[: options.prompts_per_step]
            return drawn.take(order.tolist()), np.ones(len(order), bool), passed[order], rates
        if options.filter == "none":
            passed = np.ones(len(passed), bool)
        return drawn, passed, passed, rates

    def _weights(self, responses: Responses) -> np.ndarray | None:
        """[B] share of the training signal of each response, mean 1 over a group; None: equal."""
        if self.options.weights == "none":
            return None
        size, groups = responses.samples_per_prompt, len(responses.problems)
        shares = rl.filter_weights(
            responses.outcome, np.repeat(np.arange(groups, dtype=np.int32), size), num_groups=groups,
            kind=self.options.weights, mask=responses.usable,
        )  # fmt: skip
        return np.asarray(shares) * size

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

    def _resample(self, params: Any, key: jax.Array) -> tuple[Responses, np.ndarray, np.ndarray]:
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
            self.say(f"{len(positions)} of {wanted} prompts pass the filter after {turn + 1} rounds")
        self.buffer = self.buffer.put_back(positions[wanted:])
        chosen = concatenate(parts + failed).take(list(range(wanted)))
        return chosen, np.arange(wanted) < len(positions), np.concatenate(rates)
