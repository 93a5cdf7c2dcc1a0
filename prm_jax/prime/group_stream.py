"""The groups of one step from an engine: sampled together, verified while others decode, decided in order.

Of several processes, each samples every count-th group in its own engine. What is decided is exchanged when all have
completed the groups that the step was known to need, so the groups that are asked for depend on no process's speed.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from prm_jax.data.problems import Problem
from prm_jax.prime.group_pool import Flips, GroupPool, KeyOf
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Responses, joined_parts, sendable
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.selection import Acceptance, Groups, can_pass
from prm_jax.rollouts.engine import Engine, Ticket
from prm_jax.rollouts.environments import EpisodePlayer
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.runs import processes

NextProblem = Callable[[], Problem]
"""The next prompt of the stream."""

AnyEngine = Engine | EpisodePlayer
"""What samples: responses, or episodes where they have turns."""

Judging = list[Future[tuple[list[Ticket], Responses]]]


class GroupStream:
    """Samples the groups of one step.

    As many groups are asked for as the step is known to need, plus `RolloutOptions.lookahead`; a group that fails the
    filter makes room for the next one, at once in a single process. Verification runs in a thread of its own.

    Args:
      sampler: with engines that stream.
      options: sizes and filter.
      key_of: the randomness of a prompt.
      next_problem: draws a prompt.
      flips: see `Flips`; None: none.
    """

    def __init__(
        self, sampler: Sampler, options: RolloutOptions, key_of: KeyOf, next_problem: NextProblem,
        flips: Flips | None = None,
    ) -> None:  # fmt: skip
        assert sampler.engines is not None
        self.options, self.next_problem, self.engines = options, next_problem, sampler.engines
        self.acceptance, self.pool = Acceptance(options), GroupPool(sampler, options, key_of, flips)
        self._problems: list[Problem] = []  # those of all processes
        self._decided: dict[int, bool] = {}  # in this process since the last exchange
        self._wasted = 0

    def collect(self, params: Any) -> Groups:
        """The groups that the step uses, sampled with these weights; collective where there are several processes."""
        options = self.options
        sampling = SamplingOptions(options.temperature, options.top_k, options.top_p)
        engine: AnyEngine = self.engines.prepare(params, sampling)
        turns = self.pool.sampler.turns
        if turns is not None:
            engine = turns.player(engine, self.pool.sampler.tokenizer)
        judging: Judging = []
        with ThreadPoolExecutor(1, "verifier") as verifier:
            try:
                while not self.acceptance.complete:
                    self._ask(engine)
                    ended = engine.poll() if self.pool.running else []
                    judging = self._harvest(judging, engine)
                    if processes.count() == 1 or not (self.pool.running or judging):
                        self._agree()
                    if ended and not self.acceptance.complete:
                        judging.append(verifier.submit(self.pool.judge, ended))
                    self.pool.running -= {ticket for ticket, _ in ended}
            finally:
                self._cancel(engine, self.pool.running)
                for future in judging:
                    future.cancel()
        return self._finish()

    def _ask(self, engine: AnyEngine) -> None:
        lookahead = self.options.lookahead if self.acceptance.early else 0
        wanted = min(self.acceptance.needed() + lookahead, self.acceptance.budget)
        while len(self._problems) < wanted:
            number = len(self._problems)
            self._problems.append(self.next_problem())
            if number % processes.count() == processes.index():
                self.pool.ask(engine, self.engines, number, self._problems[number])

    def _harvest(self, judging: Judging, engine: AnyEngine) -> Judging:
        """Takes what is verified; waits for it where the order of events must not depend on time."""
        wait, left = self.engines.ordered or not self.pool.running, []
        for future in judging:
            if wait or future.done():
                for number in self.pool.take(*future.result()):
                    self._decide(number, engine)
            else:
                left.append(future)
        return left

    def _decide(self, number: int, engine: AnyEngine) -> None:
        group, cuts = self.pool.groups[number], self.options.cut_groups and self.options.filter == "resample"
        if not group.tickets:
            passed = self.pool.passed(number)
        else:
            outcomes = group.known("outcome")[group.known("usable").astype(bool)]
            cut_off = not group.known("finished").all()
            if not cuts or can_pass(outcomes, len(group.tickets), cut_off, self.options):
                return
            self._cancel(engine, set(group.tickets.values()) & self.pool.running)
            passed = False
        self._decided[number] = passed
        group.dropped = cuts and not passed

    def _agree(self) -> None:
        """Decides what any process has decided since the last time."""
        for decided in processes.gather(sorted(self._decided.items()), name="groups"):
            for number, passed in decided:
                self.acceptance.decide(number, passed)
        self._decided = {}

    def _cancel(self, engine: AnyEngine, tickets: Iterable[Ticket]) -> None:
        gone = set(tickets)
        self._wasted += sum(len(response.tokens) for _, response in engine.cancel(gone))
        self.pool.running -= gone

    def _finish(self) -> Groups:
        end = self.acceptance.end
        used = {number: group for number, group in self.pool.groups.items() if number < end}
        unused = [group for number, group in self.pool.groups.items() if number >= end or group.dropped]
        wasted = self._wasted + sum(group.length() for group in unused)
        rates = [group.rate() for group in used.values()]
        responses = self.pool.joined(list(used.values())) if used else None
        if processes.count() == 1:
            assert responses is not None
            return Groups(responses, np.array(rates, np.float32), wasted)
        own = None if responses is None else sendable(responses)
        parts = processes.gather((list(used), rates, wasted, own), name="responses")
        numbers = [number for part in parts for number in part[0]]
        every = joined_parts([self._problems[number] for number in numbers], [part[3] for part in parts])
        order = np.argsort(numbers)
        all_rates = np.array([rate for part in parts for rate in part[1]], np.float32)
        return Groups(every.take(order.tolist()), all_rates[order], sum(part[2] for part in parts))
