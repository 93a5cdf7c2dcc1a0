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
from jax.sharding import NamedSharding, PartitionSpec

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.models.generation import bucket, on_cpu
from prm_jax.models.sampling import make_sampling
from prm_jax.models.sharding import RULES, rows_over, shard_params
from prm_jax.rollouts import slot_programs as programs
from prm_jax.rollouts.engine import Request, Response, Ticket, check_request
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_options import SlotStats, SlotTuning
from prm_jax.rollouts.slot_pool import PrefillPool
from prm_jax.rollouts.slot_rows import Automata, Row

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
      key: typed PRNG key.
      sampling: how tokens are chosen; None for temperature 1.
      eos_ids: end tokens; None for the tokenizer's.
      stops: stop sets, see `Engine`.
      tokenizer: knows the end tokens and the text of tokens; needed for stop strings.
      mesh: devices for slots (axes "data" and "fsdp") and heads ("tensor"); None for the parameters' own. Each device
        holds its share over "tensor" of the parameters.
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
        self.slots, self.columns, self._mesh = slots, columns, mesh if mesh is not None else _mesh_of(params)
        self.context: int | None = config.max_position_embeddings
        self._check_shape()
        if eos_ids is None:
            eos_ids = () if tokenizer is None else tokenizer.eos_ids
        self._automata = Automata(self.stops, eos_ids, config.vocab_size, tokenizer)
        chosen = sampling or SamplingOptions()
        self._rules = programs.Rules(
            key, make_sampling(temperature=chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p),
            self._automata.eos_table, self._automata.text_tables,
        )  # fmt: skip
        self._dtype = tuning.cache_dtype or config.compute_dtype
        self._sharding = programs.cache_sharding(self._mesh, config)
        self._stats = SlotStats()
        self._queue: collections.deque[Row] = collections.deque()
        self._seats: list[Row | None] = [None] * slots
        self._held: dict[Ticket, tuple[Row, int | None]] = {}  # -> its slot while it has one
        self._done: list[tuple[Ticket, Response]] = []
        self._width = columns or 0
        self._cache: programs.Cache | None = None
        self._load(params)
        if columns is not None:
            self._allocate()

    def submit(self, requests: Iterable[Request], *, prefixes: Sequence[Sequence[int]] = ()) -> list[Ticket]:
        """See `Engine`.

        Args:
          requests: what to sample.
          prefixes: for each request, response tokens to continue from; none when empty. They count towards
            `max_new_tokens`, and the continuation is that of an uninterrupted response.
        """
        new = list(requests)
        starts = list(prefixes) or [()] * len(new)
        if len(starts) != len(new):
            raise UserError(f"there are {len(starts)} prefixes for {len(new)} requests: give one for each, or none")
        first = self._stats.requests
        rows = []
        for i, (request, start) in enumerate(zip(new, starts, strict=True)):
            self._check(request, start)
            row = Row(first + i, request, request.max_new_tokens, pending=[int(token) for token in start])
            row.given = row.reported = len(start)
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

    def warm(self, prompt_lengths: Iterable[int]) -> None:
        """Compiles what requests with prompts of these lengths need. Idle slots only."""
        for length in prompt_lengths:
            self._check(Request((0,) * length, 0, 0, 1), ())
            self._grow(length + 1)
            self._allocate()
            prefix = self._pool.read([(0,) * length])[0]
            self._insert([(self.slots, *prefix)])
        self._allocate()
        self._run()

    def stats(self) -> SlotStats:
        """See `Engine`."""
        return dataclasses.replace(self._stats)

    def _check_shape(self) -> None:
        if self.slots < 1:
            raise UserError(f"slots is {self.slots}: expected at least 1")
        context = self.config.max_position_embeddings
        if self.columns is not None and not 2 <= self.columns <= context:
            raise UserError(f"columns is {self.columns}: expected 2 to {context}, the model's context")
        ways = 1 if self._mesh is None else rows_over(self._mesh)
        if self.slots % ways:
            raise UserError(f"slots is {self.slots}: expected a multiple of {ways}, the devices that share the slots")

    def _check(self, request: Request, start: Sequence[int]) -> None:
        check_request(request, self)
        total, vocab = len(request.prompt) + request.max_new_tokens, self.config.vocab_size
        if self.columns is not None and total > self.columns:
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens with a response of {request.max_new_tokens} exceeds the "
                f"engine's {self.columns} columns: shorten the prompt or the response, or make the engine with more"
            )
        if len(start) >= request.max_new_tokens:
            raise UserError(
                f"{len(start)} response tokens are given and max_new_tokens is {request.max_new_tokens}: expected more"
            )
        for token in itertools.chain(request.prompt, start):
            if not 0 <= token < vocab:
                raise UserError(f"a request contains token {token}, but the vocabulary has tokens 0 to {vocab - 1}")

    def _load(self, params: Any) -> None:
        if self._mesh is not None:
            rules = [dataclasses.replace(rule, spec=_tensor_only(rule.spec)) for rule in RULES]
            params = shard_params(params, self._mesh, rules)
        self.params = params
        self._packed = programs.pack(self.config, params, repack=on_cpu(params))
        self._pool = self._new_pool()

    def _new_pool(self) -> PrefillPool:
        read = functools.partial(programs.prefill, self.config, self.params)
        return PrefillPool(read, rows=self.slots, tokens=self.tuning.prefill_tokens, columns=self._width)

    def _grow(self, columns: int) -> None:
        """Makes room for longer requests, where `columns` was not given."""
        if columns > self._width:
            assert self.context is not None
            self._release_all(restart=False)
            self._width, self._cache = bucket(columns, self.context), None
            self._pool = self._new_pool()

    def _allocate(self) -> programs.Cache:
        if self._cache is None:
            size = programs.cache_bytes(self.config, self.slots, self._width, self._dtype)
            try:
                self._cache = programs.empty_cache(
                    self.config, slots=self.slots, columns=self._width, dtype=self._dtype, sharding=self._sharding
                )
                jax.block_until_ready(self._cache)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise UserError(
                    f"{self.slots} slots of {self._width} columns need {size / 2**30:.2f} GiB for keys and values, "
                    "which do not fit: use fewer slots or columns, or cache_dtype bfloat16"
                ) from error
        return self._cache

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
        self._seats = [None] * self.slots
        for row in reversed(rows):
            if restart:
                self._stats.wasted_tokens += sum(row.sampled[row.given :])
                row.restart(self._automata)
            row.settle(self.version, self._automata)
            self._queue.appendleft(row)

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
        self._insert([(slot, *prefix) for (slot, _), prefix in zip(taken, found, strict=True)])

    def _insert(self, places: Sequence[tuple[int, programs.Cache, int]]) -> None:
        """Copies texts to slots, in calls of one shape per shape of the prefill."""
        by_prefill: dict[int, list[tuple[int, programs.Cache, int]]] = {}
        for place in places:
            by_prefill.setdefault(id(place[1]), []).append(place)
        lanes = min(self.slots, 8)
        for group in by_prefill.values():
            for start in range(0, len(group), lanes):
                part = group[start : start + lanes]
                rest = lanes - len(part)
                into = np.array([slot for slot, _, _ in part] + [self.slots] * rest, np.int32)
                source = np.array([index for _, _, index in part] + [0] * rest, np.int32)
                self._cache = programs.insert(self._allocate(), part[0][1], into, source, sharding=self._sharding)

    def _run(self) -> None:
        """One call: decodes, and takes what has ended out of the slots."""
        steps, rows = self.tuning.steps_per_call, dict(self._running())
        forced = np.full((steps, self.slots), programs.DRAW, np.int32)
        for slot, row in rows.items():
            forced[: len(row.pending), slot] = row.pending[:steps]
        refill = max(1, int(self.slots * self.tuning.refill_share))
        live_at = np.int32(max(0, len(rows) - refill) if self._queue else 0)
        self._cache, after, written = programs.run(
            self.config, self._packed, self._allocate(), self._counters(rows), forced, self._rules, live_at,
            sharding=self._sharding,
        )  # fmt: skip
        after, written = jax.device_get((after, written))
        if rows:
            self._stats.calls += 1
            self._stats.steps += int(written.steps)
            self._stats.slot_steps += int(written.steps) * self.slots
        for slot, row in rows.items():
            count = int(after.position[slot]) - len(row.tokens)
            logp = written.logp[:count, slot]
            if np.isnan(logp).any():
                at = len(row.tokens) + int(np.isnan(logp).argmax())
                raise UserError(
                    f"the model's output is not a number at token {at} of prompt {row.request.prompt_id}, sample "
                    f"{row.request.sample}: check its parameters"
                )
            row.write(written.tokens[:count, slot].tolist(), logp.tolist(), self.version)
            row.states = int(after.eos_state[slot]), int(after.text_state[slot])
            if not after.live[slot]:
                self._finish(slot, row)

    def _counters(self, rows: dict[int, Row]) -> programs.Slots:
        counters = np.zeros((8, self.slots), np.int32)
        live = np.zeros(self.slots, bool)
        for slot, row in rows.items():
            request, position = row.request, len(row.tokens)
            length = len(request.prompt) + position
            counters[:, slot] = (
                request.prompt_id, request.sample, position, length, row.limit, request.stop, *row.states
            )  # fmt: skip
            live[slot] = True
        return programs.Slots(**dict(zip(programs.COUNTERS, counters, strict=True)), live=live)

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


def _mesh_of(params: Any) -> "Mesh | None":
    placed = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return placed.mesh if isinstance(placed, NamedSharding) else None  # type: ignore[return-value]


def _tensor_only(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(axis if axis == "tensor" else None for axis in spec))
