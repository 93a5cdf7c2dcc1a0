"""An engine in this process with a fixed number of slots, which are refilled as soon as their responses end."""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.models.generation import bucket, on_cpu
from prm_jax.models.sampling import make_sampling
from prm_jax.rollouts import slot_programs as programs
from prm_jax.rollouts.engine import Request, Response, Ticket
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_cache import SlotCache
from prm_jax.rollouts.slot_checks import check_shape, check_start
from prm_jax.rollouts.slot_options import SlotStats, SlotTuning
from prm_jax.rollouts.slot_placement import cache_sharding, compiled_sizes, for_decoding, mesh_of
from prm_jax.rollouts.slot_pool import PrefillPool
from prm_jax.rollouts.slot_rows import Automata, Row, SlotResponse, counters

if TYPE_CHECKING:
    from jax.sharding import Mesh

Running = Literal["finish", "restart", "resume", "keep"]


class SlotEngine:
    """Samples with a model in this process; a slot that becomes free takes the next request while others decode.

    A response depends on the key, the prompt, `prompt_id` and `sample` alone: not on other requests, their order, or
    the number of slots, up to float rounding. It equals that of ``models.generate`` with the same key and prompt ids.
    Nothing is compiled after the first request of each length class, see `warm`.

    Args:
      config: the model.
      params: its parameters, on one device or over a mesh.
      slots: B, responses that are decoded at the same time. More than total length / longest length of the responses
        cannot shorten a batch.
      columns: C, maximum length of a prompt with its response. None for as many as the longest request so far needs,
        which compiles again when a longer one arrives.
      key: typed PRNG key; see `draw_with`.
      sampling: how tokens are chosen; None for temperature 1.
      eos_ids: end tokens; None for the tokenizer's.
      stops: stop sets, see `Engine`.
      tokenizer: knows the end tokens and the text of tokens; needed for stop strings.
      mesh: devices for slots (axes of ``sharding.BATCH``) and heads ("tensor"); None for the parameters' own. Each
        device holds its share over "tensor" of the parameters.
      tuning: everything else.

    Raises:
      UserError: an option is out of range, or the cache does not fit.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        slots: int,
        columns: int | None = None,
        key: jax.Array,
        sampling: SamplingOptions | None = None,
        eos_ids: Sequence[int] | None = None,
        stops: Sequence[Sequence[str]] = (),
        tokenizer: Any = None,
        mesh: "Mesh | None" = None,
        tuning: SlotTuning = SlotTuning(),
    ) -> None:
        if tokenizer is None and any(stops):
            raise UserError("stop strings need a tokenizer: give the engine one, or leave them out")
        self.config, self.tokenizer, self.tuning, self.version = config, tokenizer, tuning, 0
        self.stops = tuple(tuple(strings) for strings in stops) or ((),)
        self.slots, self.columns, self._mesh = slots, columns, mesh if mesh is not None else mesh_of(params)
        self.context: int | None = config.context
        check_shape(config, slots, columns, self._mesh)
        if eos_ids is None:
            eos_ids = () if tokenizer is None else tokenizer.eos_ids
        self._automata = Automata(self.stops, eos_ids, config.vocab_size, tokenizer)
        self._stats = SlotStats()
        self._queue: collections.deque[Row] = collections.deque()
        self._held: dict[Ticket, tuple[Row, int | None]] = {}  # -> its slot while it has one
        self._done: list[tuple[Ticket, Response]] = []
        self._cache = SlotCache(
            config, compiled_sizes(slots, tuning.sizes, params, self._mesh),
            tuning.cache_dtype or config.compute_dtype, cache_sharding(self._mesh, config),
        )  # fmt: skip
        # Elsewhere the test in each step would cost more than it saves.
        self._feed_last = bool(tuning.hold) or self._mesh is not None or not on_cpu(params)
        self._seats: list[Row | None] = [None] * slots
        self.draw_with(key, sampling or SamplingOptions())
        self._load(params)
        if columns is not None:
            self._grow(columns)
            self._allocate()

    def draw_with(self, key: jax.Array, sampling: SamplingOptions | None = None) -> None:
        """Requests that are submitted from now on draw with another key.

        Args:
          key: typed PRNG key, of the kind of the first.
          sampling: how tokens are chosen from now on, also those of responses in progress; None: as before.
        """
        self.key, self._key_data = key, np.asarray(jax.random.key_data(key))
        if sampling is not None:
            self.sampling = sampling
            self._rules = programs.Rules(
                make_sampling(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p),
                self._automata.eos_table, self._automata.text_tables, jax.random.key_impl(key),
            )  # fmt: skip

    def submit(
        self, requests: Iterable[Request], *, prefixes: Sequence[Sequence[int] | SlotResponse] = ()
    ) -> list[Ticket]:
        """See `Engine`.

        Args:
          requests: what to sample.
          prefixes: for each request, response tokens to continue from, or the partial response that `cancel` returned
            for the same request, which keeps its log-probabilities. They count towards `max_new_tokens`, and the
            continuation is that of an uninterrupted response.
        """
        new = list(requests)
        starts = list(prefixes) or [()] * len(new)
        if len(starts) != len(new):
            raise UserError(f"there are {len(starts)} prefixes for {len(new)} requests: give one for each, or none")
        first = self._stats.requests
        rows = []
        for i, (request, start) in enumerate(zip(new, starts, strict=True)):
            self._check(request, start.tokens.tolist() if isinstance(start, SlotResponse) else start)
            row = Row(first + i, request, self._key_data, request.max_new_tokens)
            row.begin(start, self._automata)
            row.settle(self.version, self._automata)
            rows.append(row)
        self._grow(max((len(row.request.prompt) + row.limit for row in rows), default=0))
        self._queue += rows
        self._stats.requests += len(rows)
        return [row.ticket for row in rows]

    def poll(self, *, timeout: float | None = None) -> list[tuple[Ticket, Response]]:
        """See `Engine`: decodes until a response has ended, or for `timeout` seconds and one call.

        Raises:
          UserError: the model's output is not a number.
        """
        begun = time.monotonic()
        while not self._done and (self._queue or any(self._running())):
            self._resize()
            self._refill()
            self._run()
            if timeout is not None and time.monotonic() - begun >= timeout:
                break
        found, self._done = self._done, []
        return found

    def extend(self, ticket: Ticket, tokens: Sequence[int], *, max_new_tokens: int) -> None:
        """Continues a response of a stop set in `SlotTuning.hold` after tokens that the model did not draw.

        `poll` returns the ticket again, with the whole response. A response that still has its slot is not read again.

        Args:
          ticket: of a response that `poll` has returned with end "stop".
          tokens: to append, at least one.
          max_new_tokens: new maximum length of the whole response, these tokens included.

        Raises:
          UserError: no such response, or no room for the tokens.
        """
        if ticket not in self._held:
            raise UserError(
                f"response {ticket} cannot be extended: it must have ended with a stop string of a stop set in "
                f"SlotTuning.hold (found hold={self.tuning.hold})"
            )
        request = dataclasses.replace(self._held[ticket][0].request, max_new_tokens=max_new_tokens)
        self._check(request, [*self._held[ticket][0].tokens, *tokens])
        self._grow(len(request.prompt) + max_new_tokens)
        row, slot = self._held.pop(ticket)
        row.limit, row.pending, row.states = max_new_tokens, [int(token) for token in tokens], (0, 0)
        row.given, row.reported = len(row.tokens) + len(tokens), len(row.tokens)
        if slot is None:
            row.settle(self.version, self._automata)
            self._queue.append(row)

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """See `Engine`; returns partial responses. A held response gives up its slot and is not returned again."""
        gone = set(tickets)
        for ticket in gone & set(self._held):
            self._release(ticket)
            del self._held[ticket]
        rows = [row for row in self._queue if row.ticket in gone]
        self._queue = collections.deque(row for row in self._queue if row.ticket not in gone)
        for slot, row in self._running():
            if row.ticket in gone:
                self._seats[slot] = None
                rows.append(row)
        self._stats.responses += len(rows)
        for row in rows:
            self._count(row)
            self._stats.wasted_tokens += sum(row.sampled[row.reported :])
        return [(row.ticket, row.response("cancelled")) for row in rows]

    def peek(self, tickets: Iterable[Ticket]) -> dict[Ticket, SlotResponse]:
        """What requests in progress have produced so far, as `cancel` would return it; they continue."""
        wanted = set(tickets)
        rows = itertools.chain(self._queue, (row for _, row in self._running()))
        return {row.ticket: row.response("cancelled") for row in rows if row.ticket in wanted}

    def update(self, params: Any, version: int, *, running: Running = "resume") -> None:
        """Samples from these parameters from now on.

        Args:
          params: like the engine's.
          version: recorded with each token.
          running: what happens to responses in progress. "finish": they are completed first; `poll` returns them.
            "resume": they keep their tokens, which are read again with the new parameters. "restart": their tokens are
            dropped and drawn again. "keep": they continue on the old keys and values.
        """
        while running == "finish" and any(self._running()):
            self._run()
        self._load(params)
        if running != "keep":
            self._release_all(restart=running == "restart")
        self.version = version

    def release(self) -> None:
        """Frees the memory of weights, keys and values of an idle engine; `update` makes it usable again."""
        if self._queue or any(self._running()):
            raise RuntimeError("the engine is not idle: poll or cancel its requests before it is released")
        for ticket in self._held:
            self._release(ticket)
        self._cache.free()
        self._seats = [None] * self._cache.size
        self.params = self._packed = None
        self._pool = self._new_pool()

    def reserve(self, columns: int) -> None:
        """See `Engine`: longer requests compile again."""
        assert self.context is not None
        self._grow(min(columns, self.context))

    def warm(self, prompt_lengths: Iterable[int]) -> None:
        """Compiles what requests with prompts of these lengths need. Idle slots only."""
        lengths = sorted(set(prompt_lengths))
        for length in lengths:
            self._check(Request((0,) * length, 0, 0, 1), ())
        self._grow(max(lengths, default=0) + 1)
        if any(self._seats):
            raise RuntimeError("the engine is not idle: warm it before the first request")
        for size in self._cache.sizes[::-1]:
            self._move(size)
            for length in lengths:
                prefix = self._pool.read([(0,) * length])[0]
                self._cache.insert([(size, *prefix)])
            self._run()
        for size in self._cache.sizes:
            for other in self._cache.sizes:
                self._move(other)
                self._move(size)

    def stats(self) -> SlotStats:
        """See `Engine`."""
        return dataclasses.replace(self._stats)

    @property
    def several_sizes(self) -> bool:
        """Whether responses are moved into fewer slots, see `SlotTuning.sizes`."""
        return len(self._cache.sizes) > 1

    def _check(self, request: Request, start: Sequence[int]) -> None:
        check_start(self, request, start, columns=self.columns, vocab=self.config.vocab_size)

    def _load(self, params: Any) -> None:
        self.params = for_decoding(params, self._mesh)
        self._packed = programs.pack(self.config, self.params, repack=on_cpu(params))
        self._pool = self._new_pool()

    def _new_pool(self) -> PrefillPool:
        read = functools.partial(programs.prefill, self.config, self.params)
        return PrefillPool(read, rows=self.slots, tokens=self.tuning.prefill_tokens, columns=self._cache.columns)

    def _grow(self, columns: int) -> None:
        """Makes room for longer requests, where `columns` was not given."""
        if columns > self._cache.columns:
            assert self.context is not None
            self._release_all(restart=False)
            exact = self.columns is not None
            self._cache.widen(columns if exact else bucket(columns, self.context))
            self._seats = [None] * self._cache.size
            self._pool = self._new_pool()

    def _allocate(self) -> None:
        _ = self._cache.arrays

    def _running(self) -> Iterator[tuple[int, Row]]:
        for slot, row in enumerate(self._seats):
            if row is not None and row.ticket not in self._held:
                yield slot, row

    def _release(self, ticket: Ticket) -> None:
        """Takes the slot of a held response, which can still be extended."""
        row, slot = self._held[ticket]
        if slot is not None:
            self._seats[slot] = None
            self._held[ticket] = row, None

    def _release_all(self, *, restart: bool) -> None:
        """Moves all rows out of their slots, to be read again."""
        for ticket in self._held:
            self._release(ticket)
        rows = [row for _, row in self._running()]
        self._seats = [None] * self._cache.size
        for row in reversed(rows):
            if restart:
                self._stats.wasted_tokens += sum(row.sampled[row.given :])
                row.restart(self._automata)
            row.settle(self.version, self._automata)
            self._queue.appendleft(row)

    def _resize(self) -> None:
        """Uses fewer slots when few responses are left, more when there is enough to do again.

        Responses that wait for a slot take less time than a much larger number of slots that are mostly empty.
        """
        taken = sum(row is not None for row in self._seats)
        sizes, wanted = self._cache.sizes, taken + len(self._queue)
        size = next((size for size in sizes if wanted < 2 * size and taken <= size), sizes[-1])
        if size != self._cache.size:
            self._move(size)

    def _move(self, size: int) -> None:
        kept = [slot for slot, row in enumerate(self._seats) if row is not None]
        self._cache.resize(size, kept)
        self._seats = [*(self._seats[slot] for slot in kept), *[None] * (size - len(kept))]
        for slot, row in enumerate(self._seats):
            if row is not None and row.ticket in self._held:
                self._held[row.ticket] = row, slot
        self._stats.moves += 1

    def _fewer(self) -> int:
        """The next smaller number of slots; 0 when there is none."""
        return max((size for size in self._cache.sizes if size < self._cache.size), default=0)

    def _refill(self) -> None:
        free = [slot for slot, row in enumerate(self._seats) if row is None]
        if not free and self._queue and not any(self._running()):
            self._release(next(ticket for ticket, (_, slot) in self._held.items() if slot is not None))
            free = [slot for slot, row in enumerate(self._seats) if row is None]
        taken = [(slot, self._queue.popleft()) for slot in free[: len(self._queue)]]
        ahead = [row.context for row in itertools.islice(self._queue, 8 * self.slots)]
        found = self._pool.find([row.context for _, row in taken], ahead)
        self._stats.prefill_tokens += self._pool.take_count()
        for slot, row in taken:
            self._seats[slot] = row
        self._cache.insert([(slot, *prefix) for (slot, _), prefix in zip(taken, found, strict=True)])

    def _run(self) -> None:
        """One call: decodes, and takes what has ended out of the slots."""
        steps, rows, size = self.tuning.steps_per_call, dict(self._running()), self._cache.size
        forced = np.full((steps, size), programs.DRAW, np.int32)
        for slot, row in rows.items():
            forced[: len(row.pending), slot] = row.pending[:steps]
        live_at = max(0, self._fewer() - (size - self._seats.count(None) - len(rows)))
        if self._queue:
            live_at = max(0, len(rows) - max(1, int(size * self.tuning.refill_share)))
        after, written = self._cache.run(
            self._packed, counters(rows, size, self._key_data), forced, self._rules, live_at, feed_last=self._feed_last
        )
        if rows:
            self._stats.calls += 1
            self._stats.steps += int(written.steps)
            self._stats.slot_steps += int(written.steps) * size
        for slot, row in rows.items():
            row.take(after, written, slot, self.version)
            if not after.live[slot]:
                self._finish(slot, row)

    def _finish(self, slot: int, row: Row) -> None:
        end, index = self._automata.why(row.tokens, row.states, row.request.stop)
        self._done.append((row.ticket, row.response(end, index)))
        self._stats.responses += 1
        self._count(row)
        if end == "stop" and row.request.stop in self.tuning.hold:
            self._held[row.ticket] = row, slot
        else:
            self._seats[slot] = None

    def _count(self, row: Row) -> None:
        drawn = sum(row.sampled[row.reported :])
        self._stats.tokens += drawn
        self._stats.forced_tokens += len(row.tokens) - row.reported - drawn

