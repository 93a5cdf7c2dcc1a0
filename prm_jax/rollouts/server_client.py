"""A client of one server: JSON in and out, repetition where it can help, and an explanation where it cannot."""

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from prm_jax.errors import UserError
from prm_jax.rollouts.http_client import Exchange, HttpClient, NoServer, Refused, TryAgain, check_url, escape
from prm_jax.rollouts.sampling_options import Connection

T = TypeVar("T")

_PAGE_BYTES = 4 << 20
_LONGEST_WAIT = 10.0
_NOTICE = 30.0
"""Seconds between two messages about a server that cannot be reached."""


class UnreachableError(UserError):
    """The server does not answer, or fails whatever it is asked."""


class Abandoned(Exception):
    """The request is no longer wanted."""


class Handle:
    """Lets another thread abandon a request, in all its repetitions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exchange: Exchange | None = None
        self.abandoned = threading.Event()

    @property
    def begun(self) -> bool:
        """Whether the request has been sent."""
        return self._exchange is not None

    def begin(self) -> Exchange:
        """A connection for the next attempt.

        Raises:
          Abandoned: the request is no longer wanted.
        """
        with self._lock:
            if self.abandoned.is_set():
                raise Abandoned
            self._exchange = Exchange()
            return self._exchange

    def abandon(self) -> None:
        """Closes the request's connection."""
        with self._lock:
            self.abandoned.set()
            if self._exchange is not None:
                self._exchange.expire()


class ServerClient:
    """Talks to one server; safe to use from several threads.

    Args:
      url: the server's address, with or without /v1.
      connection: deadlines, repetitions, key.
      say: gets one line when the server cannot be reached, and when it can again.

    Attributes:
      url: without /v1.

    Raises:
      UserError: an address or key that cannot be used.
    """

    def __init__(self, url: str, connection: Connection, say: Callable[[str], None]) -> None:
        self.url = check_url(url).removesuffix("/completions").removesuffix("/v1")
        self._connection, self._say = connection, say
        self._http = HttpClient(self.url, key=read_key(connection), timeout=connection.timeout)
        self._answered = False
        self._told = 0.0

    def call(self, path: str, body: Any = None) -> Any:
        """Gets a page, or posts a JSON object; see ``dialects.Call``.

        Raises:
          UserError: see `ask`.
        """
        return self.ask(path, body, max_bytes=_PAGE_BYTES)

    def ask(
        self,
        path: str,
        body: Any,
        *,
        max_bytes: int,
        handle: Handle | None = None,
        read: Callable[[Any], T] = lambda answer: answer,
    ) -> T:
        """One request, repeated where that can help.

        Args:
          path: on the server.
          body: sent as JSON; None gets a page.
          max_bytes: maximum size of the answer.
          handle: lets another thread abandon the request.
          read: what is made of the answer; it may raise `TryAgain`.

        Raises:
          UserError: nothing answers at the address, the server refuses the request, or fails even when asked again; or
            what `read` raises.
          Abandoned: by the handle.
        """
        handle = handle or Handle()
        data = None if body is None else json.dumps(body).encode()
        attempts, unreachable = 0, 0.0
        while True:
            try:
                answer = self._http.send(path, data, max_bytes=max_bytes, exchange=handle.begin())
                self._reached()
                return read(self._parse(answer, path))
            except Refused as error:
                self._reached()
                raise UserError(f"{self.url}{path} refused the request, {error}") from error
            except (NoServer, TryAgain) as error:
                if handle.abandoned.is_set():
                    raise Abandoned from error
                gone = not getattr(error, "answered", False) and self._answered
                if not self._answered and isinstance(error, NoServer):
                    what = f"no server answers at {self.url} ({error}): is it running there?"
                    raise UnreachableError(what) from error
                if gone and isinstance(error, NoServer):
                    unreachable = unreachable or time.monotonic()
                    self._wait_for_it(error, time.monotonic() - unreachable)
                    delay = min(self._connection.backoff or 0.1, 1.0)
                else:
                    if attempts == self._connection.retries:
                        tries = "once" if attempts == 0 else f"{attempts + 1} times"
                        raise UnreachableError(f"{self.url}{path}: {error}; asked {tries}") from error
                    delay = min(self._connection.backoff * 2**attempts, _LONGEST_WAIT)
                    delay = max(delay, getattr(error, "after", 0.0))
                    attempts += 1
            if handle.abandoned.wait(delay):
                raise Abandoned

    def _reached(self) -> None:
        if self._told:
            self._told = 0.0
            self._say(f"{self.url} answers again")
        self._answered = True

    def _wait_for_it(self, error: Exception, seconds: float) -> None:
        if seconds > self._connection.patience:
            raise UnreachableError(
                f"{self.url} has not answered for {seconds:.0f} s ({error}): restart the server, or wait longer for it "
                "(--connection.patience)"
            ) from error
        if not self._told or time.monotonic() - self._told > _NOTICE:
            self._told = time.monotonic()
            self._say(f"waiting for {self.url}, which has not answered for {seconds:.0f} s ({error})")

    def _parse(self, answer: bytes, path: str) -> Any:
        if not answer.strip():
            return {}
        try:
            return json.loads(answer)
        except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
            shown = escape(answer[:80].decode(errors="replace"), 80)
            raise UserError(f"{self.url}{path} did not answer with JSON: {shown!r}") from error


def read_key(connection: Connection) -> str:
    """The API key, from the environment variable that the options name; "" without one.

    Raises:
      UserError: there is no such variable.
    """
    if not connection.key_from:
        return ""
    key = os.environ.get(connection.key_from, "")
    if not key:
        raise UserError(f"--connection.key-from: there is no environment variable {connection.key_from!r}")
    return key
