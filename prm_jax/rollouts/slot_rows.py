"""Responses in progress, as `SlotEngine` keeps them on the host."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import stopping
from prm_jax.rollouts import slot_programs as programs
from prm_jax.rollouts.engine import End, Request, Response, Ticket


@dataclasses.dataclass(frozen=True)
class SlotResponse(Response):
    """A response of `SlotEngine`.

    Attributes:
      sampled: [n] bool, False for tokens that the caller gave (a prefix, or `SlotEngine.extend`); their `logp` is 0.
      log_mass: [n] f32 <= 0, log of the probability that truncation (top-k, top-p) kept: a token was drawn with
        log-probability ``logp - log_mass``.
    """

    sampled: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    log_mass: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))


@dataclasses.dataclass
class Row:
    """A request and what has been written for it.

    Attributes:
      ticket, request: whose response it is.
      key: data of the key from which it draws.
      limit: maximum length of the response; `Request.max_new_tokens` until it is extended.
      tokens, logp, log_mass, version, sampled: of the response so far, see `SlotResponse`.
      pending: forced tokens that are not in `tokens` yet.
      given: length of the response up to the last token that the caller gave.
      states: of the automata of end tokens and of stop strings.
      reported: tokens that an earlier response of the same ticket had.
    """

    ticket: Ticket
    request: Request
    key: np.ndarray
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)
    log_mass: list[float] = dataclasses.field(default_factory=list)
    version: list[int] = dataclasses.field(default_factory=list)
    sampled: list[bool] = dataclasses.field(default_factory=list)
    pending: list[int] = dataclasses.field(default_factory=list)
    given: int = 0
    states: tuple[int, int] = (0, 0)
    reported: int = 0

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt and response so far."""
        return (*self.request.prompt, *self.tokens)

    def begin(self, start: "Sequence[int] | SlotResponse", automata: "Automata") -> None:
        """Begins with tokens of the caller, or continues a partial response."""
        if not isinstance(start, SlotResponse):
            self.pending = [int(token) for token in start]
            self.given = self.reported = len(self.pending)
            return
        for name in ("tokens", "logp", "log_mass", "version", "sampled"):
            setattr(self, name, getattr(start, name).tolist())
        self.given = int(np.flatnonzero(~start.sampled).max(initial=-1)) + 1
        self.reported = len(self.tokens)
        self.states = automata.after(self.tokens, (0, 0), self.request.stop)

    def write(self, tokens: Sequence[int], logp: Sequence[float], log_mass: Sequence[float], version: int) -> None:
        """Appends what a run wrote; pending tokens come first."""
        forced = min(len(self.pending), len(tokens))
        self.pending = self.pending[forced:]
        self.tokens += tokens
        self.logp += logp
        self.log_mass += log_mass
        self.version += [version] * len(tokens)
        self.sampled += [False] * forced + [True] * (len(tokens) - forced)

    def take(self, after: programs.Slots, written: programs.Written, slot: int, version: int) -> None:
        """Takes what a run wrote for the row's slot, all as NumPy arrays.

        Raises:
          UserError: the model's output is not a number.
        """
        count = int(after.position[slot]) - len(self.tokens)
        logp: Any = written.logp[:count, slot]
        if np.isnan(logp).any():
            at = len(self.tokens) + int(np.isnan(logp).argmax())
            raise UserError(
                f"the model's output is not a number at token {at} of prompt {self.request.prompt_id}, sample "
                f"{self.request.sample}: check its parameters"
            )
        mass = written.log_mass[:count, slot].tolist()
        self.write(written.tokens[:count, slot].tolist(), logp.tolist(), mass, version)
        self.states = int(after.eos_state[slot]), int(after.text_state[slot])

    def settle(self, version: int, automata: "Automata") -> None:
        """Takes pending tokens into the response, to be read with the prompt."""
        pending, count = self.pending, len(self.pending)
        self.write(pending, [0.0] * count, [0.0] * count, version)
        self.states = automata.after(pending, self.states, self.request.stop)

    def restart(self, automata: "Automata") -> None:
        """Drops the tokens after the last one that the caller gave."""
        kept = min(self.given, len(self.tokens))
        for values in (self.tokens, self.logp, self.log_mass, self.version, self.sampled):
            del values[kept:]
        self.states = automata.after(self.tokens, (0, 0), self.request.stop)

    def response(self, end: End, stop_index: int = -1) -> SlotResponse:
        """The response as arrays."""
        return SlotResponse(
            np.array(self.tokens, np.int32), np.array(self.logp, np.float32), np.array(self.version, np.int32), end,
            stop_index, np.array(self.sampled, bool), np.array(self.log_mass, np.float32),
        )  # fmt: skip


def counters(rows: Mapping[int, Row], size: int, key: np.ndarray) -> programs.Slots:
    """The counters of `size` slots with these rows; `key` is data of any key."""
    numbers, keys = np.zeros((8, size), np.int32), np.zeros((size, *key.shape), np.uint32)
    live = np.zeros(size, bool)
    for slot, row in rows.items():
        request, position = row.request, len(row.tokens)
        length = len(request.prompt) + position
        numbers[:, slot] = (
            request.prompt_id, request.sample, position, length, row.limit, request.stop, *row.states
        )  # fmt: skip
        live[slot], keys[slot] = True, row.key
    return programs.Slots(**dict(zip(programs.COUNTERS, numbers, strict=True)), live=live, key=keys)


class Automata:
    """When responses end: the end tokens and the stop sets of an engine.

    Args:
      stops: stop sets.
      eos_ids: end tokens.
      vocab_size: V of the model.
      tokenizer: needed for stop strings.

    Attributes:
      eos_table: [states, V] i32.
      text_tables: [stop sets, states, V] i32.
    """

    def __init__(
        self, stops: Sequence[tuple[str, ...]], eos_ids: Sequence[int], vocab_size: int, tokenizer: Any
    ) -> None:
        self.stops, self.eos_ids, self.tokenizer = tuple(stops), frozenset(eos_ids), tokenizer
        self.eos_table: np.ndarray = np.zeros((0, 0))
        texts = []
        for stop in self.stops:
            strings, sequences = stopping.check_stop(stop, tuple(eos_ids), vocab_size)
            self.eos_table, *text = stopping.stop_tables(strings, sequences, vocab_size, tokenizer)
            texts += text or [np.zeros((2, vocab_size), np.int32)]
        states = max(map(len, texts))
        self.text_tables = np.stack([_with_states(table, states) for table in texts])

    def after(self, tokens: Sequence[int], states: tuple[int, int], stop: int) -> tuple[int, int]:
        """The states after tokens that the caller gave; one that accepts starts again."""
        eos, text = states
        table = self.text_tables[stop]
        for token in tokens:
            eos, text = int(self.eos_table[eos, token]), int(table[text, token])
            eos = 0 if eos == len(self.eos_table) - 1 else eos
            text = 0 if text == len(table) - 1 else text
        return eos, text

    def why(self, tokens: Sequence[int], states: tuple[int, int], stop: int) -> tuple[End, int]:
        """(why a response ended, index of the stop string that its last token completes or -1)."""
        if states[0] == len(self.eos_table) - 1:
            return "eos", -1
        if states[1] == self.text_tables.shape[1] - 1:
            return "stop", self._completed(tokens, self.stops[stop])
        return "length", -1

    def _completed(self, tokens: Sequence[int], strings: tuple[str, ...]) -> int:
        spelled = [string.encode() for string in strings]
        last = stopping.text_bytes(tokens[-1], strings, self.tokenizer)
        before, needed = b"", max(map(len, spelled))
        for token in reversed(tokens[:-1]):
            if len(before) >= needed:
                break
            before = stopping.text_bytes(token, strings, self.tokenizer) + before
        text = before + last
        starts = [(text.find(s, max(0, len(before) - len(s) + 1)), s, i) for i, s in enumerate(spelled)]
        return min((start + len(s), -len(s), i) for start, s, i in starts if start >= 0)[2]


def _with_states(table: np.ndarray, states: int) -> np.ndarray:
    """The same automaton with states that are never reached before the last one."""
    last = len(table) - 1
    filled = np.full((states, table.shape[1]), states - 1, np.int32)
    filled[:last] = np.where(table[:last] == last, states - 1, table[:last])
    return filled
