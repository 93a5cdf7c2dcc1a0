"""Groups of responses from an engine: sampled together, verified while others decode, decided in order."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from prm_jax.data.problems import Problem
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Drawn, Responses, Sampler, concatenate
from prm_jax.prime.selection import Acceptance, Groups, can_pass, passing_groups
from prm_jax.rollouts.engine import Engine, Request, Ticket
from prm_jax.rollouts.sampling_options import SamplingOptions

NextProblem = Callable[[], Problem]
"""The next prompt of the stream."""

KeyOf = Callable[[int], tuple[jax.Array, int]]
"""Number of a prompt -> (key, number under that key)."""

Flips = Callable[[int], np.ndarray]
"""Number of a prompt -> [G] bool, outcomes that are flipped to study unreliable verifiers."""


@dataclasses.dataclass
class _Group:
    """A prompt and what is known of its responses.

    Attributes:
      problem, prompt: the problem and its token ids.
      tickets: of the responses that are not verified yet.
      rows: sample -> (piece, row): its judged response.
      dropped: its responses are not used, and may not even be complete.
    """

    problem: Problem
    prompt: list[int]
    tickets: set[Ticket] = dataclasses.field(default_factory=set)
    rows: dict[int, tuple[Responses, int]] = dataclasses.field(default_factory=dict)
    dropped: bool = False

    def rate(self) -> float:
        """The solve rate of the responses that are known."""
        usable = self.known("usable").astype(bool)
        return float(self.known("outcome")[usable].mean(dtype=np.float32)) if usable.any() else 0.0

    def known(self, name: str) -> np.ndarray:
        return np.array([getattr(piece, name)[row] for piece, row in self.rows.values()])


class GroupStream:
    """Samples the groups of one step.

    As many groups are asked for as the step is known to need, plus `RolloutOptions.lookahead`; a group that fails the
    filter makes room for the next one at once. Verification runs in a thread of its own.

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
        self.sampler, self.options, self.key_of, self.next_problem = sampler, options, key_of, next_problem
        self.flips = flips
        self.acceptance = Acceptance(options)
        self._groups: list[_Group] = []
        self._of: dict[Ticket, tuple[int, int]] = {}  # -> (group, sample), of responses that are not verified yet
        self._running: set[Ticket] = set()
        self._wasted = 0

    def collect(self, params: Any) -> Groups:
        """The groups that the step uses, sampled with these weights."""
        assert self.sampler.engines is not None
        options = self.options
        sampling = SamplingOptions(options.temperature, options.top_k, options.top_p)
        engine = self.sampler.engines.prepare(params, sampling)
        judging: list[Future[tuple[list[Ticket], Responses]]] = []
        with ThreadPoolExecutor(1, "verifier") as pool:
            try:
                while not self.acceptance.complete:
                    self._ask(engine)
                    ended = engine.poll() if self._running else []
                    judging = self._harvest(judging, engine)
                    if ended and not self.acceptance.complete:
                        judging.append(pool.submit(self._judge, ended))
                    self._running -= {ticket for ticket, _ in ended}
            finally:
                self._cancel(engine, self._running)
                for future in judging:
                    future.cancel()
        return self._finish()

    def _ask(self, engine: Engine) -> None:
        lookahead = self.options.lookahead if self.acceptance.early else 0
        wanted = min(self.acceptance.needed() + lookahead, self.acceptance.budget)
        while len(self._groups) < wanted:
            number = len(self._groups)
            problem = self.next_problem()
            group = _Group(problem, self.sampler.prompts([problem])[0])
            key, place = self.key_of(number)
            self.sampler.engines.draw_with(key)  # type: ignore[union-attr]
            tickets = engine.submit(
                [
                    Request(tuple(group.prompt), place, sample, self.sampler.max_new_tokens)
                    for sample in range(self.options.samples_per_prompt)
                ]
            )
            self._of |= {ticket: (number, sample) for sample, ticket in enumerate(tickets)}
            group.tickets |= set(tickets)
            self._running |= set(tickets)
            self._groups.append(group)

    def _judge(self, ended: list[tuple[Ticket, Any]]) -> tuple[list[Ticket], Responses]:
        """Runs in the thread of the verifier."""
        tickets = [ticket for ticket, _ in ended]
        groups = [self._groups[self._of[ticket][0]] for ticket in tickets]
        drawn = [Drawn.of(response) for _, response in ended]
        return tickets, self.sampler.judge([g.problem for g in groups], [g.prompt for g in groups], drawn)

    def _harvest(self, judging: list[Future[Any]], engine: Engine) -> list[Future[Any]]:
        """Takes what is verified; waits for it where the order of events must not depend on time."""
        assert self.sampler.engines is not None
        wait = self.sampler.engines.ordered or not self._running
        left = []
        for future in judging:
            if wait or future.done():
                tickets, judged = future.result()
                self._take(tickets, judged, engine)
            else:
                left.append(future)
        return left

    def _take(self, tickets: list[Ticket], judged: Responses, engine: Engine) -> None:
        touched = set()
        for row, ticket in enumerate(tickets):
            number, sample = self._of[ticket]
            if self.flips is not None and self.flips(number)[sample]:
                judged.outcome[row] = 1.0 - judged.outcome[row]
            group = self._groups[number]
            group.tickets.discard(ticket)
            group.rows[sample] = judged, row
            touched.add(number)
        for number in sorted(touched):
            self._decide(number, engine)

    def _decide(self, number: int, engine: Engine) -> None:
        group, cuts = self._groups[number], self.options.cut_groups and self.options.filter == "resample"
        if not group.tickets:
            passed = bool(passing_groups(self._joined([group]), self.options)[0])
        else:
            usable = group.known("usable").astype(bool)
            cut_off = not group.known("finished").all()
            outcomes = group.known("outcome")[usable]
            if not cuts or can_pass(outcomes, len(group.tickets), cut_off, self.options):
                return
            self._cancel(engine, group.tickets & self._running)
            passed = False
        self.acceptance.decide(number, passed)
        group.dropped = cuts and not passed

    def _cancel(self, engine: Engine, tickets: set[Ticket]) -> None:
        self._wasted += sum(len(response.tokens) for _, response in engine.cancel(tickets))
        self._running = self._running - tickets

    def _finish(self) -> Groups:
        used = self._groups[: self.acceptance.end]
        unused = [group for group in self._groups if group.dropped] + self._groups[self.acceptance.end :]
        lost = {id(group): group for group in unused}.values()
        wasted = sum(int(piece.mask[row].sum()) for group in lost for piece, row in group.rows.values())
        rates = np.array([group.rate() for group in used], np.float32)
        return Groups(self._joined(used), rates, self._wasted + wasted)

    def _joined(self, groups: list[_Group]) -> Responses:
        """The groups' responses. Those of a dropped group are empty: which of them are known depends on timing."""
        size, count = self.options.samples_per_prompt, 0
        pieces: dict[int, Responses] = {}
        starts: dict[int, int] = {}
        places: list[int] = []
        for group in groups:
            blank = self._blank(group) if group.dropped else None
            for sample in range(size):
                piece, row = (blank, 0) if blank is not None else group.rows[sample]
                if id(piece) not in pieces:
                    pieces[id(piece)], starts[id(piece)] = piece, count
                    count += len(piece.texts)
                places.append(starts[id(piece)] + row)
        joined = concatenate(list(pieces.values())).take(places)
        return dataclasses.replace(joined, problems=[group.problem for group in groups])

    def _blank(self, group: _Group) -> Responses:
        nothing = Drawn(np.zeros(0, np.int32), np.zeros(0, np.float32), False)
        blank = self.sampler.judge([group.problem], [group.prompt], [nothing])
        return dataclasses.replace(blank, usable=np.zeros(1, bool), outcome=np.zeros(1, np.float32))
