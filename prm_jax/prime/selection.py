"""Which prompts of a step the policy learns from: the solve-rate filter, applied in the order of the prompts."""

import dataclasses

import numpy as np

from prm_jax.data.selection import solve_rate_passes
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Responses


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


def can_pass(outcomes: np.ndarray, missing: int, truncated: bool, options: RolloutOptions) -> bool:
    """Whether a group may still pass.

    Args:
      outcomes: [n] in [0, 1], of the responses that are verified; those whose verification failed left out.
      missing: number of responses that are not verified yet, which may or may not count.
      truncated: whether one was cut off.
      options: bounds of the filter.
    """
    if truncated and options.drop_truncated:
        return False
    total, most = float(np.sum(outcomes)), len(outcomes) + missing
    lowest, highest = np.float32(total / max(most, 1)), np.float32((total + missing) / max(most, 1))
    return bool(lowest <= np.float32(options.solve_rate_high) and highest >= np.float32(options.solve_rate_low))


class Acceptance:
    """Decides which of a step's prompts are used, in their order and not in that in which responses end.

    Prompts are numbered 0, 1, ... in the order of the stream. With a filter that draws more prompts than it keeps, the
    step uses the shortest beginning of the stream that has enough passing prompts; what comes after it is not used,
    however soon it was sampled. The batch then depends neither on speed nor on how many prompts are sampled at once,
    and short responses are not favoured.

    Args:
      options: filter and sizes.

    Attributes:
      wanted: number of prompts in the batch.
      budget: maximum number of prompts drawn.
      per_round: prompts that are drawn at once when they are sampled in rounds.
      early: whether the step may use fewer prompts than the budget.
    """

    def __init__(self, options: RolloutOptions) -> None:
        self.options, self.wanted = options, options.prompts_per_step
        self.early = options.filter in ("oversample", "resample")
        self.budget = self.per_round = self.wanted
        if options.filter == "oversample":
            self.budget = self.per_round = self.wanted * options.oversample_factor
        elif options.filter == "resample":
            self.budget = self.wanted * options.max_resample_rounds
        self._passed: dict[int, bool] = {}
        self._end = self._passes = 0

    def decide(self, number: int, passed: bool) -> None:
        """Records whether a prompt passes the filter."""
        self._passed[number] = passed
        while not self.complete and self._end in self._passed:
            self._passes += self._passed[self._end]
            self._end += 1

    @property
    def complete(self) -> bool:
        """Whether the batch is known."""
        return self._end == self.budget or (self.early and self._passes == self.wanted)

    @property
    def end(self) -> int:
        """Number of prompts that are decided without a gap; once complete, those that the step uses."""
        return self._end

    @property
    def passes(self) -> int:
        """How many of them pass."""
        return self._passes

    def needed(self) -> int:
        """Number of prompts that the step will use at least, by what is decided so far."""
        return min(self.budget, self.wanted + (len(self._passed) - sum(self._passed.values()) if self.early else 0))

    def choose(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """(numbers of the batch's prompts [wanted], which of them count [wanted], which pass [wanted])."""
        passed = np.array([self._passed[number] for number in range(self._end)])
        if self.options.filter == "none":
            passed = np.ones(len(passed), bool)
        if not self.early:
            return list(range(self.wanted)), passed, passed
        # Passing prompts first, otherwise in order; failing ones as filler, so that shapes are static.
        order = np.argsort(~passed, kind="stable")[: self.wanted]
        kept = passed[order]
        return order.tolist(), np.ones_like(kept) if self.options.filter == "oversample" else kept, kept


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups that a step uses, in the order of their prompts.

    Attributes:
      responses: judged, P' prompts.
      rates: [P'] float32, solve rates.
      wasted: tokens of responses that were sampled and not used.
    """

    responses: Responses
    rates: np.ndarray
    wasted: int = 0
