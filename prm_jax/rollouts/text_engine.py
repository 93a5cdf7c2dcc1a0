"""An engine whose model runs on a server that exchanges text: any with the completions API."""

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.rollouts.completion_answer import Completion, CompletionRequest
from prm_jax.rollouts.completions import CompletionServer
from prm_jax.rollouts.engine import End, EngineStats, Request, Response, Ticket, cancelled, check_request, first_stop
from prm_jax.rollouts.sampling_options import Connection, SamplingOptions
from prm_jax.rollouts.server_client import read_key


class TextEngine:
    """Samples with a model on a server that exchanges text, for search and evaluation; training needs `RemoteEngine`.

    Encoding a text is not the inverse of decoding token ids, so these tokens may differ from those that were drawn.

    A request ends at its stop set or at the end of text. Where a server does not say which of the two it was, it is
    asked again without the strings that end only some requests, and its text is cut at the first of these.

    Attributes:
      context: None; the server knows it.

    Args:
      url: the server's address.
      tokenizer: of the model; encodes what the server writes.
      model: name of the model, unless `connection` gives the server's own.
      connection: how to talk to the server.
      sampling: how tokens are chosen; `top_k` is not part of the API.
      seed: of the sampling, for servers that accept one; in [0, 2**32).
      stops: stop sets, see `Engine`.

    Raises:
      UserError: an address, key or option that cannot be used.
    """

    context: int | None = None

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str = "",
        connection: Connection = Connection(),
        sampling: SamplingOptions = SamplingOptions(),
        seed: int = 0,
        stops: Sequence[Sequence[str]] = ((),),
    ) -> None:
        if sampling.top_k:
            raise UserError("the completions API has no top_k: leave it at 0")
        self.tokenizer, self.sampling, self.seed, self.connection = tokenizer, sampling, seed, connection
        self.stops = tuple(tuple(strings) for strings in stops)
        self.server = CompletionServer(
            url, connection.model or model, any_model=connection.any_model, timeout=connection.timeout,
            retries=connection.retries, backoff=connection.backoff, workers=connection.workers,
            at_once=connection.at_once, logprobs=connection.logprobs, key=read_key(connection),
        )  # fmt: skip
        self._common = set(self.stops[0]).intersection(*self.stops)
        self._says_why = True
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[Future[list[Response]], list[Ticket]] = {}
        self._cancelled: set[Ticket] = set()
        self._stats = EngineStats()

    def submit(self, requests: Iterable[Request]) -> list[Ticket]:
        """See `Engine`: sends the requests, at most `Connection.workers` at a time.

        Consecutive samples of a prompt are one request to the server.
        """
        new = list(requests)
        for request in new:
            check_request(request, self)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.connection.workers)
        self.server.start()
        first = self._stats.requests
        self._stats.requests += len(new)
        at = 0
        for group in _groups(new, self.connection.at_once):
            future = self._pool.submit(self._ask, group)
            self._running[future] = list(range(first + at, first + at + len(group)))
            at += len(group)
        self._stats.calls += len(self._running)
        return list(range(first, first + len(new)))

    def poll(self, *, timeout: float | None = None) -> list[tuple[Ticket, Response]]:
        """See `Engine`.

        Raises:
          UserError: see `CompletionServer.complete`; all other requests are abandoned.
        """
        found: list[tuple[Ticket, Response]] = []
        while self._running and not found:
            try:
                done, _ = wait(self._running, timeout, return_when=FIRST_COMPLETED)
                if not done:
                    break
                for future in done:
                    tickets = self._running.pop(future)
                    found += zip(tickets, future.result(), strict=True)
            except BaseException:
                self._abandon()
                raise
            found = [(ticket, one) for ticket, one in found if ticket not in self._cancelled]
        self._stats.responses += len(found)
        self._stats.tokens += sum(len(response.tokens) for _, response in found)
        return found

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """See `Engine`; what the server has written so far is not known."""
        running = {ticket for own in self._running.values() for ticket in own} - self._cancelled
        gone = [ticket for ticket in tickets if ticket in running]
        self._cancelled.update(gone)
        for future, own in list(self._running.items()):
            if self._cancelled.issuperset(own) and future.cancel():
                del self._running[future]
        self._stats.responses += len(gone)
        return [(ticket, cancelled(0)) for ticket in gone]

    def update(self, params: Any, version: int) -> None:
        """Refuses: a server behind this API keeps its own weights."""
        raise UserError("a server behind the completions API cannot be given other weights: restart it with them")

    def reserve(self, columns: int) -> None:
        """See `Engine`: nothing to do, since the server has the memory."""

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return dataclasses.replace(self._stats)

    def _abandon(self) -> None:
        self.server.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._running, self._pool = {}, None

    def _ask(self, group: Sequence[Request]) -> list[Response]:
        first, stop = group[0], self.stops[group[0].stop]
        base = int(np.random.SeedSequence([self.seed, first.prompt_id]).generate_state(1)[0]) >> 2
        request = CompletionRequest(
            self._prompt(first.prompt), len(group), first.max_new_tokens, temperature=self.sampling.temperature,
            top_p=self.sampling.top_p, seed=base + first.sample,
        )  # fmt: skip
        common = tuple(string for string in stop if string in self._common)
        if common != stop and self._says_why:
            found = self.server.ask(request._replace(stop=stop))
            if all(one.end != "either" for one in found):
                return [self._response(one, stop) for one in found]
            self._says_why = False
        return [self._response(one, stop) for one in self.server.ask(request._replace(stop=common))]

    def _prompt(self, ids: Sequence[int]) -> str | list[int]:
        if self.connection.prompts == "tokens":
            return list(ids)
        bos = self.tokenizer.special.bos_id  # the server adds its own
        return self.tokenizer.decode(list(ids[1:] if ids and ids[0] == bos else ids))

    def _response(self, one: Completion, stop: Sequence[str]) -> Response:
        """A completion as tokens; a string of the stop set inside its text ends it there."""
        text = one.text + (one.matched or "")
        found = first_stop(text, stop)
        if found is not None:
            text = text[: found[1]]
        end: End = "stop" if found is not None else "length" if one.end == "length" else "eos"
        ids = self.tokenizer.encode(text) if text else []
        pieces = [self.tokenizer.token_bytes(token) for token in ids]
        if b"".join(pieces).decode(errors="replace") != text:
            raise UserError(
                f"the tokenizer does not reproduce {text[:40]!r}: its model cannot be used behind a server, because "
                "steps are tokenised one by one"
            )
        eos = self.tokenizer.special.eos_id
        if end == "eos" and eos is not None:
            ids, pieces = [*ids, eos], [*pieces, b""]
        logp = None if one.logps is None else _assign(one.logps, pieces, len(text) if found else None)
        version = np.zeros(len(ids), np.int32)
        return Response(np.array(ids, np.int32), logp, version, end, found[0] if found else -1)


def _groups(requests: Sequence[Request], at_once: int) -> list[list[Request]]:
    """Runs of consecutive samples of the same prompt, at most `at_once` long (0: any length)."""
    groups: list[list[Request]] = []
    for request in requests:
        last = groups[-1] if groups else []
        follows = last and request == dataclasses.replace(last[-1], sample=last[-1].sample + 1)
        if follows and not (at_once and len(last) >= at_once):
            last.append(request)
        else:
            groups.append([request])
    return groups


def _assign(logps: Sequence[tuple[str, float]], pieces: Sequence[bytes], characters: int | None) -> np.ndarray:
    """[n] f32: each of the server's log-probabilities added to the token in which its text starts.

    Those whose text starts after `characters` are left out.
    """
    total = np.zeros(len(pieces))
    ends = np.cumsum([len(piece) for piece in pieces])
    character, byte = 0, 0
    for text, logp in logps:
        if len(pieces) and (characters is None or character < characters):
            total[min(int(np.searchsorted(ends, byte, side="right")), len(pieces) - 1)] += logp
        character, byte = character + len(text), byte + len(text.encode(errors="replace"))
    return total.astype(np.float32)
