"""Groups of responses while they are sampled and verified."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.problems import Problem
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Drawn, Responses, concatenate
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.selection import passing_groups
from prm_jax.rollouts.engine import Request, Response, Ticket
from prm_jax.rollouts.environments import Episode
from prm_jax.rollouts.slot_source import EngineSource

KeyOf = Callable[[int], tuple[jax.Array, int]]
"""Number of a prompt -> (key, number under that key)."""

Flips = Callable[[int], np.ndarray]
"""Number of a prompt -> [G] bool, outcomes that are flipped to study unreliable verifiers."""


@dataclasses.dataclass
class Group:
    """A prompt and what is known of its responses.

    Attributes:
      problem, prompt: the problem and its token ids.
      requests: of its responses.
      tickets: sample -> ticket, of the responses that are not verified yet.
      rows: sample -> (piece, row): its judged response.
      dropped: its responses are not used, and may not even be complete.
    """

    problem: Problem
    prompt: list[int]
    requests: list[Request]
    tickets: dict[int, Ticket] = dataclasses.field(default_factory=dict)
    rows: dict[int, tuple[Responses, int]] = dataclasses.field(default_factory=dict)
    dropped: bool = False

    def rate(self) -> float:
        """The solve rate of the responses that are known."""
        usable = self.known("usable").astype(bool)
        return float(self.known("outcome")[usable].mean(dtype=np.float32)) if usable.any() else 0.0

    def known(self, name: str) -> np.ndarray:
        """A field of `Responses` of the responses that are verified."""
        return np.array([getattr(piece, name)[row] for piece, row in self.rows.values()])

    def length(self) -> int:
        """Tokens of the responses that are verified."""
        return sum(int(piece.mask[row].sum()) for piece, row in self.rows.values())


class GroupPool:
    """The groups that are asked for, by number.

    Args:
      sampler: encodes, and judges responses.
      options: sizes and filter.
      key_of: the randomness of a prompt.
      flips: see `Flips`; None: none.

    Attributes:
      groups: number -> group.
      running: tickets of responses that the engine has not returned.
    """

    def __init__(self, sampler: Sampler, options: RolloutOptions, key_of: KeyOf, flips: Flips | None) -> None:
        self.sampler, self.options, self.key_of, self.flips = sampler, options, key_of, flips
        self.groups: dict[int, Group] = {}
        self.running: set[Ticket] = set()
        self._of: dict[Ticket, tuple[int, int]] = {}

    def ask(self, engine: Any, source: EngineSource, number: int, problem: Problem, starts: Sequence[Any] = ()) -> None:
        """Asks an `Engine` for the responses to a prompt, or an `EpisodePlayer` where they have turns.

        `starts` are partial responses, for a `SlotEngine`.
        """
        prompt = self.sampler.prompts([problem])[0]
        key, place = self.key_of(number)
        requests = [
            Request(tuple(prompt), place, sample, self.sampler.max_new_tokens)
            for sample in range(self.options.samples_per_prompt)
        ]
        group = self.groups[number] = Group(problem, prompt, requests)
        source.draw_with(key)
        if self.sampler.turns is not None:
            tickets = engine.submit([self.sampler.turns.begin(request, problem) for request in requests])
        else:
            tickets = engine.submit(requests, prefixes=starts) if starts else engine.submit(requests)
        group.tickets = dict(enumerate(tickets))
        self._of |= {ticket: (number, sample) for sample, ticket in enumerate(tickets)}
        self.running |= set(tickets)

    def place(self, ticket: Ticket) -> tuple[int, int]:
        """(number of the prompt, sample) of a response that is not verified yet."""
        return self._of[ticket]

    def judge(self, ended: Sequence[tuple[Ticket, Response | Episode]]) -> tuple[list[Ticket], Responses]:
        """Verifies responses; may run in another thread."""
        tickets = [ticket for ticket, _ in ended]
        groups = [self.groups[self._of[ticket][0]] for ticket in tickets]
        drawn = [Drawn.of(response) for _, response in ended]
        return tickets, self.sampler.judge([g.problem for g in groups], [g.prompt for g in groups], drawn)

    def take(self, tickets: Sequence[Ticket], judged: Responses) -> list[int]:
        """Takes verified responses; the numbers of their groups."""
        touched = set()
        for row, ticket in enumerate(tickets):
            number, sample = self._of.pop(ticket)
            if self.flips is not None and self.flips(number)[sample]:
                judged.outcome[row] = 1.0 - judged.outcome[row]
            group = self.groups[number]
            group.tickets.pop(sample, None)
            group.rows[sample] = judged, row
            touched.add(number)
        return sorted(touched)

    def passed(self, number: int) -> bool:
        """Whether a group that is verified passes the filter."""
        return bool(passing_groups(self.joined([self.groups[number]]), self.options)[0])

    def joined(self, groups: Sequence[Group]) -> Responses:
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

    def _blank(self, group: Group) -> Responses:
        nothing = Drawn(np.zeros(0, np.int32), np.zeros(0, np.float32), False)
        blank = self.sampler.judge([group.problem], [group.prompt], [nothing])
        return dataclasses.replace(blank, usable=np.zeros(1, bool), outcome=np.zeros(1, np.float32))
