"""An engine whose model runs on a server that exchanges token ids: vLLM, SGLang or llama.cpp."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import queue
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prm_jax.errors import UserError
from prm_jax.rollouts.dialects import Served, TokenAnswer, TokenRequest
from prm_jax.rollouts.engine import MAX_PROMPT_ID, End, EngineStats, Request, Response, Ticket, check_request
from prm_jax.rollouts.remote_responses import GroupWatch, RemoteResponse, RemoteRow, check_text, stop_position
from prm_jax.rollouts.remote_server import Chosen, RemoteServer
from prm_jax.rollouts.sampling_options import Connection, SamplingOptions
from prm_jax.rollouts.server_client import Abandoned
from prm_jax.rollouts.weight_updates import Probe, WeightUpdates

_logger = logging.getLogger(__name__)
_PARTIAL = 10.0
"""Seconds to wait for what a server has written of an aborted request."""


def warn(text: str) -> None:
    """Logs a warning; the command line shows it."""
    _logger.warning("%s", text)


class RemoteEngine:
    """Samples with a model on a server that exchanges token ids.

    The seed of a request is a hash of the engine's seed, the version of the weights, `prompt_id` and `sample`, so that
    no two samples share one. Whether the same seed gives the same response is up to the server.

    Args:
      url: the server's address.
      model: name of the model on the server; "" for the only one that it serves.
      tokenizer: of the model; finds stop strings, and servers with another tokenizer.
      dialect: the server's interface; "auto" asks the server.
      connection: how to talk to the server; `Connection.model` and `Connection.dialect` take precedence.
      sampling: how tokens are chosen.
      seed: of the sampling, in [0, 2**64).
      stops: stop sets, see `Engine`.
      hold: stop sets whose responses `extend` may continue.
      weights: hands new weights to the server; None for a server that keeps its own.
      probe: compares the server's log-probabilities with the trainer's after each update.
      mixed_versions: samples of one prompt may come from several versions of the weights.
      keep_raw_logp: give log-probabilities at temperature 1 although another temperature is sampled at. By default
        they are unknown (`Response.logp` is None), since importance weights computed from them would be wrong.
      say: gets one-line warnings.

    Attributes:
      context: maximum length of a prompt with its response, None where the server does not say.
      server: the server.
      version: of the weights.

    Raises:
      UserError: an address, key or option that cannot be used; no server, one of another kind, or with another model or
        vocabulary.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Any,
        *,
        dialect: Chosen = "auto",
        connection: Connection = Connection(),
        sampling: SamplingOptions = SamplingOptions(),
        seed: int = 0,
        stops: Sequence[Sequence[str]] = ((),),
        hold: Sequence[int] = (),
        weights: WeightUpdates | None = None,
        probe: Probe | None = None,
        mixed_versions: bool = False,
        keep_raw_logp: bool = False,
        say: Callable[[str], None] = warn,
    ) -> None:
        self.tokenizer, self.sampling, self.seed, self.connection = tokenizer, sampling, seed, connection
        self.stops = tuple(tuple(strings) for strings in stops)
        self.version = 0
        self._say, self._hold, self._mixed = say, frozenset(hold), mixed_versions
        self.server = RemoteServer(
            url, model, tokenizer, dialect=dialect, connection=connection, say=say
        )  # fmt: skip
        self.context: int | None = self.server.info.context
        self._weights, self._probe = weights, probe
        self._keep_raw, self._warned = keep_raw_logp, False
        self._ready: list[tuple[Ticket, Response]] = []
        self._groups = GroupWatch(mixed=mixed_versions, say=say)
        self._rows: dict[Ticket, RemoteRow] = {}
        self._held: dict[Ticket, RemoteRow] = {}
        self._answers: queue.SimpleQueue[tuple[RemoteRow, TokenAnswer | Exception]] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._stats = EngineStats()
        self._name = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self.draw_with(seed, sampling)

    def draw_with(self, seed: int, sampling: SamplingOptions | None = None) -> None:
        """Requests that are submitted from now on use this seed, and this sampling if it is not None."""
        self.seed, self.sampling = seed, self.sampling if sampling is None else sampling
        if self.connection.logprobs and not self._exact(self.sampling) and not self._warned:
            self._warned = True
            self._say(
                f"{self.server.info.description} sends log-probabilities at temperature 1 and tokens are sampled at "
                f"{self.sampling.temperature:g}: the behaviour's log-probabilities are unknown, and no importance "
                "weights can be computed from them"
            )

    def submit(self, requests: Iterable[Request]) -> list[Ticket]:
        """See `Engine`: sends the requests, at most `Connection.workers` at a time.

        Raises:
          UserError: a request that cannot be served, or two that ask for the same sample of the same prompt.
        """
        new, sampling = list(requests), self.sampling
        running = {row.seed for row in self._rows.values()}
        rows = []
        for number, request in enumerate(new, self._stats.requests):
            check_request(request, self)
            seed = self._seed(request)
            if seed in running and sampling.temperature > 0:
                raise UserError(
                    f"sample {request.sample} of prompt {request.prompt_id} is asked for twice, with one seed: the "
                    "samples of a group would be identical; give each its own number"
                )
            running.add(seed)
            rows.append(RemoteRow(number, request, seed, request.max_new_tokens, self.version, sampling, self.seed))
        self._stats.requests += len(rows)
        for row in rows:
            self._send(row)
        return [row.ticket for row in rows]

    def poll(self, *, timeout: float | None = None) -> list[tuple[Ticket, Response]]:
        """See `Engine`.

        What has been completed before a failure is returned first; the failure is raised by the next call.

        Raises:
          UserError: the server refused a request or failed, see `RemoteServer.ask`, or its answer cannot be used; all
            other requests are abandoned.
        """
        found, self._ready = self._ready, []
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._rows and not found and self._failure is None:
            try:
                wait = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                found += self._take(*self._answers.get(timeout=wait))
                while True:
                    found += self._take(*self._answers.get_nowait())
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    break
            except BaseException:
                self._abandon()
                raise
        if not found and self._failure is not None:
            failure, self._failure = self._failure, None
            self._abandon()
            raise failure
        return found

    def extend(self, ticket: Ticket, tokens: Sequence[int], *, max_new_tokens: int) -> None:
        """Continues a response of a stop set in `hold` after tokens that the model did not draw.

        `poll` returns the ticket again, with the whole response. The server gets prompt, response and tokens as a new
        request, so its cache of prefixes decides what that costs.

        Args:
          ticket: of a response that `poll` has returned with end "stop".
          tokens: to append, at least one.
          max_new_tokens: new maximum length of the whole response, these tokens included.

        Raises:
          UserError: no such response, or no room for the tokens.
        """
        if ticket not in self._held:
            raise UserError(
                f"response {ticket} cannot be extended: it must have ended with a stop string of a stop set in hold "
                f"(found hold={sorted(self._hold)})"
            )
        row = self._held[ticket]
        if not tokens or len(row.tokens) + len(tokens) >= max_new_tokens:
            raise UserError(
                f"a response of {len(row.tokens)} tokens is to be extended by {len(tokens)}, and max_new_tokens is "
                f"{max_new_tokens}: give at least one token, and room for another"
            )
        if row.versions[0] != self.version and not self._mixed:
            raise UserError(
                f"response {ticket} was begun with the weights of version {row.versions[0]}, and those of version "
                f"{self.version} would continue it: end responses before an update, or allow it (mixed_versions=True)"
            )
        check_request(dataclasses.replace(row.request, max_new_tokens=max_new_tokens), self)
        del self._held[ticket]
        row.version = self.version
        row.force(tokens)
        row.limit = max_new_tokens
        self._send(row)

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """See `Engine`; ends the requests on the server too.

        SGLang sends what it has written; from other servers only the parts before the last `extend` are known.
        """
        gone, dialect = set(tickets), self.server.dialect
        for ticket in gone & set(self._held):
            del self._held[ticket]
        rows = [row for ticket, row in self._rows.items() if ticket in gone]
        for row in rows:
            row.cancelled = True
            if not (dialect.sends_partials and row.handle.begun):
                row.handle.abandon()
        # Only then the others: when they end, the next ones in line must not be sent.
        aborted = [row for row in rows if not row.handle.abandoned.is_set()]
        for row in aborted:
            with contextlib.suppress(UserError):  # a server that fails has written nothing
                dialect.abort(self.server.client.call, row.request_id)
        self._receive(aborted)
        for row in rows:
            row.handle.abandon()
            self._rows.pop(row.ticket, None)
        self._stats.responses += len(rows)
        return [(row.ticket, row.response("cancelled", -1, exact=self._exact(row.sampling))) for row in rows]

    def update(self, params: Any, version: int) -> None:
        """Hands the weights to the server and samples from them from now on.

        Raises:
          UserError: the engine was made without `weights`, requests are in progress and `mixed_versions` is False, the
            server did not accept the weights, or the probe finds others on the server.
        """
        if self._weights is None:
            raise UserError(
                f"the engine at {self.server.url} has no way to hand weights to the server: make it with weights=, or "
                "give --rollout.server.folder"
            )
        if self._rows and not self._mixed:
            raise UserError(
                f"{len(self._rows)} requests are in progress while the weights change, which would mix versions in a "
                "group: poll or cancel them first, or allow it (mixed_versions=True)"
            )
        self.server.served = self._weights.publish(params, version, self.server)
        self.version = version
        if not self._mixed:
            self._groups.clear()
        self.check_weights(params)

    def check_weights(self, params: Any) -> None:
        """Probes the server's weights, if the engine was made with a probe.

        What else completes meanwhile is kept for `poll`.

        Raises:
          UserError: the server has other weights than these, see `Probe`.
        """
        probe = self._probe
        if probe is None:
            return
        requests = [
            Request(prompt, MAX_PROMPT_ID - i, 0, probe.max_new_tokens) for i, prompt in enumerate(probe.prompts)
        ]
        tickets = self.submit(requests)
        found: dict[Ticket, Response] = {}
        others: list[tuple[Ticket, Response]] = []
        while len(found) < len(tickets):
            for ticket, response in self.poll():
                if ticket in tickets:
                    found[ticket] = response
                else:
                    others.append((ticket, response))
        self._ready += others
        self._groups.clear()
        at = (self.sampling.temperature or 1.0, 1.0)
        temperature, other = at if self.server.dialect.tempered else at[::-1]
        responses = [found[ticket] for ticket in tickets]
        probe.check(params, responses, temperature=temperature, other=other, where=self.server.url)

    def reserve(self, columns: int) -> None:
        """See `Engine`: nothing to do, since the server has the memory."""

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return dataclasses.replace(self._stats)

    def close(self) -> None:
        """Ends all requests, and a server that `weights` has started."""
        self._abandon()
        if self._weights is not None:
            self._weights.close()

    def _exact(self, sampling: SamplingOptions) -> bool:
        """Whether the server's log-probabilities are those of the sampling."""
        return self.server.dialect.tempered or sampling.temperature in (0, 1) or self._keep_raw

    def _seed(self, request: Request) -> int:
        numbers = (self.seed, self.version, request.prompt_id, request.sample)
        digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _send(self, row: RemoteRow) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.connection.workers)
        row.request_id = f"{self._name}-{next(self._numbers)}"
        self._rows[row.ticket] = row
        self._stats.calls += 1
        self._pool.submit(self._work, row, self.server.served)

    def _work(self, row: RemoteRow, served: Served) -> None:
        """Runs in a thread of the pool."""
        request = TokenRequest(
            row.context, row.limit - len(row.tokens), self.stops[row.request.stop], row.sampling, row.seed,
            row.request_id, logprobs=self.connection.logprobs, token_bytes=self.tokenizer.token_bytes,
        )  # fmt: skip
        try:
            answer = self.server.ask(request, row.handle, served=served, wanted=lambda: not row.cancelled)
            self._answers.put((row, answer))
        except Abandoned:
            self._answers.put((row, TokenAnswer((), None, "abort", "")))
        except Exception as error:
            self._answers.put((row, error))

    def _take(self, row: RemoteRow, answer: TokenAnswer | Exception) -> list[tuple[Ticket, Response]]:
        """A completed request: [] for one that is no longer wanted, or has failed."""
        if self._rows.get(row.ticket) is not row:
            return []
        del self._rows[row.ticket]
        if isinstance(answer, Exception):
            self._failure = self._failure or answer
            return []
        try:
            response = self._complete(row, answer)
        except UserError as error:
            self._failure = self._failure or error
            return []
        if response.end == "stop" and row.request.stop in self._hold:
            self._held[row.ticket] = row
        self._stats.responses += 1
        self._stats.tokens += len(answer.tokens)
        return [(row.ticket, response)]

    def _complete(self, row: RemoteRow, answer: TokenAnswer) -> RemoteResponse:
        where, index = self.server.url, -1
        text = check_text(answer, self.tokenizer, where)
        if answer.end == "stop":
            index = stop_position(answer, text, self.stops[row.request.stop], where)
        row.write(answer)
        end: End = "cancelled" if answer.end == "abort" else answer.end
        response = row.response(end, index, exact=self._exact(row.sampling))
        self._groups.add(row, response)
        return response

    def _receive(self, rows: Sequence[RemoteRow]) -> None:
        """Waits for what the server has written of cancelled requests."""
        waiting = {row.ticket: row for row in rows}
        others = []
        deadline = time.monotonic() + _PARTIAL
        while waiting:
            try:
                row, answer = self._answers.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if waiting.get(row.ticket) is not row:
                others.append((row, answer))
                continue
            del waiting[row.ticket]
            if isinstance(answer, TokenAnswer):
                row.write(answer)
        for one in others:
            self._answers.put(one)

    def _abandon(self) -> None:
        for row in self._rows.values():
            row.handle.abandon()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._rows, self._pool = {}, None
