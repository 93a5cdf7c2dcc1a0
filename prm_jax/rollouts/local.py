"""An engine in this process that runs batches of requests through ``models.generate``."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from prm_jax import models
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, rope
from prm_jax.rollouts.engine import EngineStats, Request, Response, Ticket, cancelled, check_request, first_stop
from prm_jax.rollouts.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from prm_jax.models.prefixes import PrefixStore


@dataclasses.dataclass(frozen=True)
class Batching:
    """How `LocalEngine` forms batches; no choice changes a response.

    Attributes:
      rows: maximum number of sequences in one call; all samples of one prompt run together, even if there are more.
      multiple: the number of prompts in a call is a multiple of this, for parameters on several devices.
      reuse: keeps keys and values between calls; None reads every prompt again.
      reuse_for: stop sets whose responses later prompts continue; only these use `reuse`.
    """

    rows: int = 64
    multiple: int = 1
    reuse: "PrefixStore | None" = None
    reuse_for: tuple[int, ...] = (0,)


class _Group(NamedTuple):
    """Requests that differ in their sample only."""

    prompt: tuple[int, ...]
    prompt_id: int
    stop: int
    tickets: dict[int, Ticket]  # sample -> ticket


class LocalEngine:
    """Samples with a model in this process.

    A response depends on the key, the prompt, `prompt_id` and `sample` alone: not on other requests, their order, or
    the batches. It equals that of ``models.generate`` with the same key and prompt ids.

    Args:
      config: the model.
      params: its parameters, on one device or over a mesh.
      key: typed PRNG key.
      sampling: how tokens are chosen.
      stops: stop sets, see `Engine`.
      tokenizer: knows the end tokens and finds stop strings.
      batching: how batches are formed.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        key: jax.Array,
        sampling: SamplingOptions = SamplingOptions(),
        stops: Sequence[Sequence[str]] = ((),),
        tokenizer: Any = None,
        batching: Batching = Batching(),
    ) -> None:
        if tokenizer is None and any(stops):
            raise UserError("stop strings need a tokenizer: give the engine one, or leave them out")
        self.config, self.params, self.key, self.sampling = config, params, key, sampling
        self.stops = tuple(tuple(strings) for strings in stops)
        self.tokenizer, self.batching, self.version = tokenizer, batching, 0
        self.context: int | None = config.context
        self._pending: dict[Ticket, Request] = {}
        self._longest: dict[int, int] = {}  # stop set -> columns of its responses
        self._stats = EngineStats()

    def submit(self, requests: Iterable[Request]) -> list[Ticket]:
        """See `Engine`."""
        new = list(requests)
        for request in new:
            check_request(request, self)
        first = self._stats.requests
        self._pending |= dict(enumerate(new, first))
        self._stats.requests += len(new)
        return list(range(first, first + len(new)))

    def poll(self, *, timeout: float | None = None) -> list[tuple[Ticket, Response]]:
        """See `Engine`: runs one batch to its end, whatever `timeout` is."""
        groups = self._groups()
        if not groups:
            return []
        samples = 1 + max(groups[0].tickets)
        alike = [g for g in groups if g.stop == groups[0].stop and 1 + max(g.tickets) == samples]
        size = self._round_up(max(1, self.batching.rows // samples))
        batch = alike[:size]
        # A last, smaller batch has the shape of those before it, so that nothing is compiled for it.
        found = self._run(batch, samples, size if len(alike) > size or self._full else self._round_up(len(batch)))
        self._full = len(alike) > size
        for ticket, response in found:
            del self._pending[ticket]
            self._stats.responses += 1
            self._stats.tokens += len(response.tokens)
        return found

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """See `Engine`."""
        gone = [ticket for ticket in tickets if self._pending.pop(ticket, None) is not None]
        self._stats.responses += len(gone)
        return [(ticket, cancelled(self.version)) for ticket in gone]

    def update(self, params: Any, version: int) -> None:
        """See `Engine`."""
        self.params, self.version = params, version

    def reserve(self, columns: int) -> None:
        """See `Engine`: nothing to do, since each batch has its own memory."""

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return dataclasses.replace(self._stats)

    _full = False  # more batches of the same shape follow

    def _groups(self) -> list[_Group]:
        groups: dict[tuple[Any, ...], _Group] = {}
        for ticket, request in self._pending.items():
            key = (request.prompt, request.prompt_id, request.stop, request.max_new_tokens)
            group = groups.setdefault(key, _Group(request.prompt, request.prompt_id, request.stop, {}))
            group.tickets.setdefault(request.sample, ticket)  # a repeated request waits for the next batch
        return list(groups.values())

    def _round_up(self, prompts: int) -> int:
        return -(-prompts // self.batching.multiple) * self.batching.multiple

    def _run(self, groups: Sequence[_Group], samples: int, size: int) -> list[tuple[Ticket, Response]]:
        """One call for `size` prompts; those after the last group are padding."""
        stop = groups[0].stop
        limits = {ticket: self._pending[ticket].max_new_tokens for group in groups for ticket in group.tickets.values()}
        columns = self._longest[stop] = max(self._longest.get(stop, 0), *limits.values())
        filled = [*groups, *[groups[-1]] * (size - len(groups))]
        found = models.generate(
            self._longer(columns), self.params, [list(group.prompt) for group in filled], self.key,
            samples_per_prompt=samples, max_new_tokens=columns, temperature=self.sampling.temperature,
            top_k=self.sampling.top_k, top_p=self.sampling.top_p, stop=self.stops[stop],
            options=models.DecodeOptions(
                tokenizer=self.tokenizer,
                prompt_ids=[group.prompt_id for group in filled],
                reuse=self.batching.reuse if stop in self.batching.reuse_for else None,
            ),
        )  # fmt: skip
        tokens, mask, logp = (np.asarray(x) for x in (found.tokens, found.mask, found.logp))
        self._stats.calls += 1
        self._stats.slot_steps += len(tokens) * int(mask.sum(1).max(initial=0))
        out = []
        for place, group in enumerate(groups):
            for sample, ticket in group.tickets.items():
                row = place * samples + sample
                kept = np.flatnonzero(mask[row])[: limits[ticket]]
                out.append((ticket, self._response(tokens[row][kept], logp[row][kept], stop)))
        return out

    def _longer(self, columns: int) -> ModelConfig:
        """The same model with a context that is longer by `columns`.

        Responses that start near the end of the context are generated at full length and cut afterwards; no token that
        is kept lies outside the model's own context.
        """
        context, scaling = self.config.max_position_embeddings, self.config.rope_scaling
        if scaling is not None and scaling.kind == "longrope":
            scaling = dataclasses.replace(
                scaling, attention_factor=rope.frequencies(self.config)[1],
                original_max_position_embeddings=self.config.context + columns,
            )  # fmt: skip
        elif scaling is not None and scaling.original_max_position_embeddings is None:
            scaling = dataclasses.replace(scaling, original_max_position_embeddings=context)
        return dataclasses.replace(self.config, max_position_embeddings=context + columns, rope_scaling=scaling)

    def _response(self, tokens: np.ndarray, logp: np.ndarray, stop: int) -> Response:
        version = np.full(len(tokens), self.version, np.int32)
        tokens, logp = tokens.astype(np.int32), logp.astype(np.float32)
        if self.tokenizer is not None and len(tokens):
            if int(tokens[-1]) in self.tokenizer.eos_ids:
                return Response(tokens, logp, version, "eos")
            text = self.tokenizer.decode(tokens.tolist(), skip_special=True) if self.stops[stop] else ""
            found = first_stop(text, self.stops[stop])
            if found is not None:
                return Response(tokens, logp, version, "stop", found[0])
        return Response(tokens, logp, version, "length")
