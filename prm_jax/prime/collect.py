"""From prompts to the batch of one step: sample, verify, filter by solve rate, ask the source, lay out for training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prm_jax import rl
from prm_jax.data.pipeline import PromptBuffer, PromptStream
from prm_jax.prime.batch import Batch
from prm_jax.prime.drawing import Drawing, flips_of, keys_of_step
from prm_jax.prime.group_pool import KeyOf
from prm_jax.prime.group_stream import GroupStream
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import ROLLOUT_STREAM, SOURCE_STREAM, Responses, concatenate
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.selection import Acceptance, Groups, passing_groups
from prm_jax.prime.sources.base import observe, on_host
from prm_jax.rollouts.engine import EngineStats
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.runs import processes
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
    mask = responses.mask if responses.sampled is None else responses.mask & responses.sampled
    arrays: dict[str, Any] = {
        "tokens": responses.tokens,
        "mask": mask,
        "keep": np.repeat(np.asarray(keep, bool), size) & responses.usable,
        "outcome": responses.outcome,
        "group_ids": np.repeat(np.arange(len(responses.problems), dtype=np.int32), size),
        "step_ids": responses.step_ids,
        "judged": responses.usable,
        "process": process,
        "initial_value": initial_value,
        "confidence": confidence,
        "weights": weights,
        "behaviour_logp": responses.behaviour_logp,
        "version": responses.version,
        "start": _floor_to_power_of_two(int(responses.mask.argmax(axis=1).min())),
    }
    return Batch(**arrays)


def _utilisation(before: EngineStats, after: EngineStats) -> dict[str, float]:
    """The share of decode steps, over the slots of all processes, that gave a token; collective."""
    own = [after.tokens - before.tokens, after.slot_steps - before.slot_steps]
    tokens, slot_steps = np.sum(processes.gather(own, name="counters"), axis=0).tolist()
    return {"rollout/utilisation": tokens / slot_steps} if slot_steps else {}


def _floor_to_power_of_two(column: int) -> int:
    """A static shape must not follow every prompt's length, or each would compile the step again."""
    return 1 << (column.bit_length() - 1) if column >= 8 else 0


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
        before = self._engine_stats()
        if self.sampler.turns is not None:
            self.sampler.turns.reset()  # of the evaluations since the last step
        groups, acceptance = self._groups(params, step)
        after = self._engine_stats()
        numbers, keep, passed = acceptance.choose()
        chosen, rates = groups.responses.take(numbers), groups.rates
        sampled = len(groups.responses.texts)
        self.sampled += sampled
        weights = self._weights(chosen)
        observed = None
        if self.source is not None and on_host(self.source):
            source_key = jax.random.fold_in(jax.random.fold_in(self.key, SOURCE_STREAM), step)
            observed = observe(self.source, chosen, self.sampler, params, source_key)
            self.sampled += observed.sampled
            self.for_source += observed.sampled
            sampled += observed.sampled
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
            "rollout/sampled": float(sampled),
            "rollout/wasted_tokens": float(groups.wasted),
            "rollouts": float(self.sampled),
        }
        if self.sampler.engines is not None:
            self.sampler.engines.release()  # keys and values must not take memory while the policy learns
        metrics |= _utilisation(before, after)
        if self.sampler.engines is not None:
            metrics |= self.sampler.engines.metrics()
        if self.sampler.turns is not None:
            metrics |= self.sampler.turns.metrics()
        metrics |= self._more_metrics(groups, step)
        return Collected(batch, chosen, metrics, empty=not np.asarray(batch.keep).any())

    def _engine_stats(self) -> EngineStats:
        return EngineStats() if self.sampler.engines is None else self.sampler.engines.stats()

    def _more_metrics(self, groups: Groups, step: int) -> dict[str, float]:
        return {}

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

    def _groups(self, params: Any, step: int) -> tuple[Groups, Acceptance]:
        """The groups that the step uses, and which of them the batch has; the stream continues after the last."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, ROLLOUT_STREAM), step)
        drawing = Drawing(self.sampler, self.stream, self.buffer, self.too_long)
        key_of = keys_of_step(self.options, key)
        engines = self.sampler.engines
        if engines is not None and engines.streams:
            stream = GroupStream(self.sampler, self.options, key_of, drawing.next, flips_of(self.options, key_of))
            groups, acceptance = stream.collect(params), stream.acceptance
        else:
            groups, acceptance = self._rounds(params, key_of, drawing)
        self.buffer, self.too_long = drawing.after[acceptance.end - 1]
        if self.options.filter == "resample" and acceptance.passes < acceptance.wanted:
            self.say(
                f"{acceptance.passes} of {acceptance.wanted} prompts pass the filter after {acceptance.end} prompts "
                "(--rollout.max-resample-rounds)"
            )
        version = np.where(groups.responses.mask, step, 0).astype(np.int32)  # whatever the engine counts
        responses = dataclasses.replace(groups.responses, version=version)
        return dataclasses.replace(groups, responses=responses), acceptance

    def _rounds(self, params: Any, key_of: KeyOf, drawing: Drawing) -> tuple[Groups, Acceptance]:
        """The same from whole rounds of prompts."""
        options, acceptance, parts = self.options, Acceptance(self.options), []
        flips, count = flips_of(options, key_of), 0
        while not acceptance.complete:
            problems = [drawing.next() for _ in range(acceptance.per_round)]
            drawn = self.sampler.sample(
                params, problems, key_of(count)[0], samples_per_prompt=options.samples_per_prompt,
                sampling=SamplingOptions(options.temperature, options.top_k, options.top_p),
            )  # fmt: skip
            if flips is not None:
                wrong = np.concatenate([flips(count + place) for place in range(len(problems))])
                outcome = np.where(wrong, 1.0 - drawn.outcome, drawn.outcome).astype(np.float32)
                drawn = dataclasses.replace(drawn, outcome=outcome)
            for place, passed in enumerate(passing_groups(drawn, options).tolist()):
                acceptance.decide(count + place, passed)
            parts.append(drawn)
            count += len(problems)
        every = concatenate(parts)
        used = every.take(list(range(acceptance.end)))
        return Groups(used, used.solve_rates(), int(every.mask.sum() - used.mask.sum())), acceptance

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
