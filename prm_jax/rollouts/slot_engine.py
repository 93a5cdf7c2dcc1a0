"""An engine in this process with continuous batching: a slot whose response has ended gets the next request."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, decode, stopping
from prm_jax.models.sampling import make_sampling
from prm_jax.rollouts.engine import EngineStats, Request, Response, Ticket, cancelled, check_request, first_stop
from prm_jax.rollouts.options import SamplingOptions
from prm_jax.rollouts.slots import NewRows, empty_slots, insert, prefill, run


class SlotEngine:
    """Samples with a model in this process in a fixed number of slots, which are refilled as responses end.

    Worth it when responses differ in length. A response depends on the key, the prompt, `prompt_id` and `sample` alone
    and equals that of ``models.generate`` up to float rounding of the log-probabilities. Every prompt is prefilled by
    itself, so that for a given number of slots even the rounding does not depend on other requests.

    Args:
      config: the model.
      params: its parameters, on one device.
      slots: B, responses that are sampled at the same time; about total length / longest length is enough.
      columns: C, maximum length of a prompt with its response.
      key: typed PRNG key.
      sampling: how tokens are chosen.
      stops: stop sets, see `Engine`.
      eos_ids: end tokens; the tokenizer's when None.
      tokenizer: knows the end tokens and finds stop strings.
      steps_per_call: maximum number of tokens per slot between two refills.

    Raises:
      UserError: a number below 1, or stop strings without a tokenizer.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        slots: int,
        columns: int,
        key: jax.Array,
        sampling: SamplingOptions = SamplingOptions(),
        stops: Sequence[Sequence[str]] = ((),),
        eos_ids: Sequence[int] | None = None,
        tokenizer: Any = None,
        steps_per_call: int = 32,
    ) -> None:
        if min(slots, columns, steps_per_call) < 1:
            raise UserError("a SlotEngine needs slots, columns and steps_per_call of at least 1")
        self.config, self.key, self.tokenizer, self.version = config, key, tokenizer, 0
        self.stops = tuple(tuple(strings) for strings in stops)
        self.context: int | None = min(columns, config.max_position_embeddings)
        self.eos_ids = tuple(tokenizer.eos_ids if eos_ids is None and tokenizer is not None else eos_ids or ())
        self._sampling = make_sampling(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
        self._tables = tuple(self._automata(strings) for strings in self.stops)
        self._slots = empty_slots(config, slots, columns, self._tables, key)
        self._steps = steps_per_call
        self._owner: list[Ticket | None] = [None] * slots
        self._requests: dict[Ticket, Request] = {}
        self._queue: list[Ticket] = []
        self._stats = EngineStats()
        self.update(params, 0)

    def submit(self, requests: Iterable[Request]) -> list[Ticket]:
        """See `Engine`."""
        new = list(requests)
        for request in new:
            check_request(request, self)
        tickets = list(range(self._stats.requests, self._stats.requests + len(new)))
        self._requests |= dict(zip(tickets, new, strict=True))
        self._queue += tickets
        self._stats.requests += len(new)
        return tickets

    def poll(self, *, timeout: float | None = None) -> list[tuple[Ticket, Response]]:
        """See `Engine`: runs until at least one response has ended, whatever `timeout` is."""
        found: list[tuple[Ticket, Response]] = []
        while self._requests and not found:
            self._refill()
            # With nothing to refill with, a call runs on until all have ended or its steps are over.
            free_at = 1 if self._queue else len(self._owner)
            self._slots, steps = run(
                self.config, self._packed, self._slots, self._sampling, self._tables, jnp.int32(free_at),
                steps=self._steps,
            )  # fmt: skip
            self._stats.calls += 1
            self._stats.slot_steps += int(steps) * len(self._owner)
            found = self._ended()
        return found

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """See `Engine`."""
        found = []
        for ticket in tickets:
            if ticket in self._queue:
                self._queue.remove(ticket)
                found.append((ticket, cancelled(self.version)))
            elif ticket in self._owner:
                slot = self._owner.index(ticket)
                self._slots = dataclasses.replace(self._slots, live=self._slots.live.at[slot].set(False))
                found.append((ticket, dataclasses.replace(self._response(slot), end="cancelled", stop_index=-1)))
                self._owner[slot] = None
            else:
                continue
            del self._requests[ticket]
            self._count(found[-1][1])
        return found

    def update(self, params: Any, version: int) -> None:
        """See `Engine`.

        Raises:
          UserError: responses are being sampled.
        """
        if any(owner is not None for owner in self._owner):
            raise UserError("responses are being sampled: poll until all have ended, or cancel them, before an update")
        leaf = jax.tree.leaves(params)[0]
        on_cpu = (next(iter(leaf.devices())) if isinstance(leaf, jax.Array) else jax.devices()[0]).platform == "cpu"
        self.params, self.version = params, version
        self._packed = _prepare(self.config, params, repack=on_cpu)

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return dataclasses.replace(self._stats)

    def _automata(self, strings: tuple[str, ...]) -> tuple[jax.Array, ...]:
        texts, sequences = stopping.check_stop(strings, self.eos_ids, self.config.vocab_size)
        tables = stopping.stop_tables(texts, sequences, self.config.vocab_size, self.tokenizer)
        return tuple(jnp.asarray(table) for table in tables)

    def _refill(self) -> None:
        """Gives free slots to queued requests; those of the same prompt share its prefill."""
        free = [slot for slot, owner in enumerate(self._owner) if owner is None]
        taken = list(zip(free, self._queue, strict=False))
        del self._queue[: len(taken)]
        by_prompt: dict[tuple[int, ...], list[tuple[int, Ticket]]] = {}
        for slot, ticket in taken:
            self._owner[slot] = ticket
            by_prompt.setdefault(self._requests[ticket].prompt, []).append((slot, ticket))
        for prompt, rows in by_prompt.items():
            tokens = np.zeros(_bucket(len(prompt), self._slots.tokens.shape[1]), np.int32)
            tokens[: len(prompt)] = prompt
            length = jnp.int32(len(prompt))
            hidden, layers = prefill(self.config, self.params, tokens, length)
            self._slots = insert(self._slots, self._rows(rows), hidden, layers, length, self.key)

    def _rows(self, rows: Sequence[tuple[int, Ticket]]) -> NewRows:
        count = len(self._owner)
        fields = np.zeros((5, count), np.int32)
        fields[0] = count
        for i, (slot, ticket) in enumerate(rows):
            request = self._requests[ticket]
            fields[:, i] = slot, request.prompt_id, request.sample, request.max_new_tokens, request.stop
        return NewRows(*fields)

    def _ended(self) -> list[tuple[Ticket, Response]]:
        live = np.asarray(self._slots.live)
        found = []
        for slot, ticket in enumerate(self._owner):
            if ticket is not None and not live[slot]:
                found.append((ticket, self._response(slot)))
                self._owner[slot] = None
                del self._requests[ticket]
                self._count(found[-1][1])
        return found

    def _count(self, response: Response) -> None:
        self._stats.responses += 1
        self._stats.tokens += len(response.tokens)

    def _response(self, slot: int) -> Response:
        request, count = self._requests[self._owner[slot]], int(self._slots.step[slot])  # type: ignore[index]
        tokens, logp = (np.asarray(x[slot])[:count] for x in (self._slots.tokens, self._slots.logp))
        if np.isnan(logp).any():
            raise UserError(
                f"the model's logits are NaN for prompt_id {request.prompt_id}, sample {request.sample}, token "
                f"{int(np.argmax(np.isnan(logp)))} of the response: check the parameters"
            )
        version = np.full(count, self.version, np.int32)
        if count and int(tokens[-1]) in self.eos_ids:
            return Response(tokens, logp, version, "eos")
        strings = self.stops[request.stop]
        found = first_stop(self.tokenizer.decode(tokens.tolist(), skip_special=True), strings) if strings else None
        if found is not None:
            return Response(tokens, logp, version, "stop", found[0])
        return Response(tokens, logp, version, "length")


def _prepare(config: ModelConfig, params: Any, *, repack: bool) -> Any:
    return jax.jit(decode.prepare, static_argnums=0, static_argnames="repack")(config, params, repack=repack)


def _bucket(length: int, columns: int) -> int:
    """A padded length of prompts, of which there are few: powers of two from 8."""
    return min(max(8, 1 << (length - 1).bit_length()), columns)
