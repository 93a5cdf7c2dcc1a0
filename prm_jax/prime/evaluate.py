"""Evaluation: a policy's answers and steps on held-out problems, and a PRM against exact step labels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax import rl, stats
from prm_jax.data.problems import Problem, Task
from prm_jax.prime.batch import Batch, Frozen, State
from prm_jax.prime.options import EvalOptions
from prm_jax.prime.responses import Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources import SavedPRM, SourceBatch
from prm_jax.prime.sources.base import on_host
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.runs import processes
from prm_jax.runs.host_memory import on_device


def sample_in_batches(
    sampler: Sampler,
    params: Any,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    batch_size: int,
    temperature: float,
) -> Responses:
    """One response per problem; ``models.generate`` samples `batch_size` at once, slots all together."""
    return sampler.sample(
        params, problems, key, sampling=SamplingOptions(temperature), chunk=min(batch_size, len(problems))
    )


def policy_metrics(task: Task, responses: Responses) -> dict[str, float]:
    """Accuracy and step accuracy of one response a problem.

    Returns:
      accuracy: mean outcome, over responses whose verification worked; step_accuracy: the share of right
      steps among all steps written (left out where the task knows no step truth); length in tokens; finished:
      the share of responses that ended by themselves.
    """
    usable = responses.usable
    metrics = {
        "accuracy": float(responses.outcome[usable].mean()) if usable.any() else float("nan"),
        "length": float(responses.mask.sum(axis=1).mean()),
        "finished": float(responses.finished.mean()),
    }
    labels = step_labels(task, responses)
    if labels is not None:
        metrics["step_accuracy"] = sum(map(sum, labels)) / max(sum(map(len, labels)), 1)
    return metrics


def step_labels(task: Task, responses: Responses) -> list[list[bool]] | None:
    """Exact step labels of every response, or None where the task knows none."""
    size = responses.samples_per_prompt
    found: list[list[bool]] = []
    for index, text in enumerate(responses.texts):
        labels = task.step_labels(responses.problems[index // size], text)
        if labels is None:
            return None
        found.append(labels)
    return found


@dataclasses.dataclass(frozen=True)
class PRMProbe:
    """A fixed set of responses with exact step labels on which a PRM is judged again and again.

    Attributes:
      responses: one a problem, from the initial policy.
      labels: [B, S] bool, True on right steps.
      step_mask: [B, S] bool.
      first_error: [B] int, -1 where every step is right.
    """

    responses: Responses
    labels: np.ndarray
    step_mask: np.ndarray
    first_error: np.ndarray

    @staticmethod
    def build(task: Task, responses: Responses) -> "PRMProbe | None":
        """The probe of some responses, or None where the task knows no step truth."""
        labels = step_labels(task, responses)
        if labels is None:
            return None
        width = max(1, max(map(len, labels)))
        table = np.zeros((len(labels), width), bool)
        mask = np.zeros((len(labels), width), bool)
        for row, steps in enumerate(labels):
            table[row, : len(steps)] = steps
            mask[row, : len(steps)] = True
        wrong = mask & ~table
        first = np.where(wrong.any(axis=1), wrong.argmax(axis=1), -1)
        return PRMProbe(responses, table, mask, first)

    def evaluate(self, step_scores: np.ndarray) -> dict[str, float]:
        """Judges step scores [B, S] (higher is better) against the labels.

        The first half of the responses only picks the threshold below which a step counts as wrong; the
        second half is scored.  Steps behind the first wrong one say nothing about fault-finding (they go on
        from a wrong total) and are left out of the AUC.

        Returns:
          first_error_f1, error_acc, correct_acc (ProcessBench, arXiv 2412.06559), step_auc, and
          outcome_auc (the AUC of a response's smallest step score against its outcome).
        """
        half = len(self.first_error) // 2
        threshold, _ = rl.best_threshold(step_scores[:half], self.step_mask[:half], self.first_error[:half])
        predicted = rl.first_error(step_scores[half:], self.step_mask[half:], threshold=threshold)
        f1 = rl.first_error_f1(predicted, self.first_error[half:])
        return {
            "first_error_f1": float(f1["f1"]),
            "error_acc": float(f1["error_acc"]),
            "correct_acc": float(f1["correct_acc"]),
            **self.areas(step_scores, slice(half, None)),
        }

    def areas(self, step_scores: np.ndarray, rows: slice = slice(None)) -> dict[str, float]:
        """step_auc and outcome_auc of step scores [B, S] on some of the responses; see `evaluate`."""
        steps = np.arange(self.labels.shape[1])
        seen = self.step_mask & ((self.first_error[:, None] < 0) | (steps[None, :] <= self.first_error[:, None]))
        lowest = np.where(self.step_mask, step_scores, np.inf).min(axis=1)
        written = np.asarray(self.step_mask.any(axis=1))
        outcome = self.responses.outcome > 0.5
        return {
            "step_auc": float(stats.roc_auc(step_scores[rows], self.labels[rows], seen[rows])),
            "outcome_auc": float(stats.roc_auc(lowest[rows], outcome[rows], written[rows])),
        }


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates a training state: the policy on held-out problems, and the source of rewards on the probe.

    Attributes:
      task, sampler, options: what is evaluated, and how.
      problems: held-out problems that fit.
      temperature: of sampled responses.
      key: typed PRNG key; every evaluation uses the same draws.
      policy_params: training state -> the policy's whole parameters.
      probe: ``state -> metrics`` of the source, or None.
      fresh: ``(state, responses) -> metrics`` of the source on the policy's sampled responses, or None.
    """

    task: Task
    sampler: Sampler
    options: EvalOptions
    problems: Sequence[Problem]
    temperature: float
    key: jax.Array
    policy_params: Callable[[Any], Any]
    probe: Callable[[Any], dict[str, float]] | None
    fresh: Callable[[Any, Responses], dict[str, float]] | None = None

    def __call__(self, state: Any) -> dict[str, float]:
        """``eval/...`` of the policy, ``prm_eval/...`` of the source."""
        params = self.policy_params(state)
        metrics: dict[str, float] = {}
        modes = [("greedy", 0.0)] * self.options.greedy + [("sampled", self.temperature)] * self.options.sampled
        for name, temperature in modes:
            responses = sample_in_batches(
                self.sampler, params, self.problems, self.key, batch_size=self.options.batch_size,
                temperature=temperature,
            )  # fmt: skip
            found = policy_metrics(self.task, responses)
            metrics |= {f"eval/{name}_{metric}": value for metric, value in found.items()}
            if name == "sampled" and self.fresh is not None:
                metrics |= self.fresh(state, responses)
        if self.sampler.engines is not None:
            self.sampler.engines.release()
        return metrics if self.probe is None else metrics | self.probe(state)


def can_be_probed(source: Any) -> bool:
    """Whether a source can be judged on the probe: a model can; checkers and rollouts know the answers."""
    return source is not None and (not on_host(source) or isinstance(source, SavedPRM))


StepScores = Callable[[State, Responses], np.ndarray]
"""``(state, B responses) -> step scores [B, S]``, S at least the number of steps of the longest."""


def make_step_scores(
    source: Any, sampler: Sampler, frozen: Frozen, policy_params: Callable[[Any], Any], *, batch_size: int
) -> StepScores | None:
    """Step scores of a source, or None where it cannot be probed."""
    if not can_be_probed(source):
        return None
    if on_host(source):

        def observed(state: State, responses: Responses) -> np.ndarray:
            del state
            rewards = source.observe(responses, sampler, None, jax.random.key(0)).process
            width = responses.mask.shape[1]
            return np.asarray(rl.step_rewards(rewards, responses.step_ids, num_steps=width, how="sum")[0])

        return observed
    score = _compiled_step_scores(source)

    def scored(state: State, responses: Responses) -> np.ndarray:
        parts = []
        for start in range(0, len(responses.texts), batch_size):
            rows = _rows(responses, slice(start, start + batch_size))
            given = SourceBatch(rows, policy_params(state), frozen.reference, frozen.constants)
            parts.append(np.asarray(processes.to_host(score(state.source, given))))
        return np.concatenate(parts)

    return scored


def make_probe(
    probe: PRMProbe | None, source: Any, scores: StepScores | None
) -> Callable[[State], dict[str, float]] | None:
    """``state -> prm_eval/... metrics`` of a source on the probe, or None where there is nothing to judge.

    A source that computes its rewards on the host and is frozen is judged once.
    """
    if probe is None or scores is None:
        return None
    found: list[dict[str, float]] = []

    def evaluate(state: State) -> dict[str, float]:
        if not (found and on_host(source)):
            found[:] = [_named(probe.evaluate(scores(state, probe.responses)[:, : probe.labels.shape[1]]))]
        return found[0]

    return evaluate


def make_fresh_probe(
    task: Task, probe: PRMProbe | None, scores: StepScores | None
) -> Callable[[State, Responses], dict[str, float]] | None:
    """``(state, responses) -> metrics`` of a source on the current policy's responses, or None.

    The metrics are ``prm_eval/fresh_step_auc`` and ``prm_eval/fresh_outcome_auc``: whether the source still knows right
    steps from wrong ones in what the policy writes now.
    """
    if probe is None or scores is None:
        return None

    def evaluate(state: State, responses: Responses) -> dict[str, float]:
        fresh = PRMProbe.build(task, responses)
        if fresh is None:
            return {}
        found = fresh.areas(scores(state, responses)[:, : fresh.labels.shape[1]])
        return _named({f"fresh_{name}": value for name, value in found.items()})

    return evaluate


def _compiled_step_scores(source: Any) -> Callable[[Any, SourceBatch], jax.Array]:
    plain = source.for_warm_up(1) if hasattr(source, "for_warm_up") else source

    def score(state: Any, batch: SourceBatch) -> jax.Array:
        rewards = plain.score(state, on_device(batch))
        return rl.step_rewards(rewards, batch.step_ids, num_steps=batch.mask.shape[1], how="sum")[0]

    return jax.jit(score)


def _rows(responses: Responses, rows: slice) -> Batch:
    tokens = responses.tokens[rows]
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "mask": responses.mask[rows],
        "keep": responses.usable[rows],
        "outcome": responses.outcome[rows],
        "group_ids": np.arange(len(tokens), dtype=np.int32),
        "step_ids": responses.step_ids[rows],
        "judged": responses.usable[rows],
    }
    return Batch(**arrays)


def _named(found: dict[str, float]) -> dict[str, float]:
    return {f"prm_eval/{name}": value for name, value in found.items()}
