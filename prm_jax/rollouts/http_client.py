"""Requests to one server: a deadline for the whole exchange, a limit on the answer, no redirects, no leaked keys.

Only the standard library is used. What a server sends is data: its texts are escaped before they enter a message.
"""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from prm_jax.errors import UserError

_CHUNK = 1 << 16
_LOCAL = ("localhost", "127.0.0.1", "::1")
_NOBODY = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)


class TryAgain(Exception):
    """A failure that may not occur again.

    Attributes:
      after: seconds that the server asks to wait.
      answered: the server did answer, with a status that says so.
    """

    def __init__(self, what: str, after: float = 0.0, *, answered: bool = False) -> None:
        super().__init__(what)
        self.after, self.answered = after, answered


class Refused(Exception):
    """The server answered with a status that repeating the request would not change.

    Attributes:
      status: of HTTP.
    """

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class NoServer(Exception):
    """Nothing accepts connections at the address."""


def escape(text: str, limit: int) -> str:
    """Text from outside for a message: at most `limit` characters, control characters as escapes."""
    short = text if len(text) <= limit else text[:limit] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in short)


def check_url(url: str) -> str:
    """The address of an API, checked.

    Args:
      url: "http://host:8000", with or without a path.

    Returns:
      The address without a trailing slash.

    Raises:
      UserError: it is not an address of HTTP, or holds something that does not belong there.
    """
    shown = escape(url, 80)
    if not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        raise UserError(f"{shown!r} is not the address of a server: it holds spaces or characters that are not ASCII")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{shown!r} is not the address of a server ({error}): expected http://localhost:8000") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise UserError(f"{shown!r} is not the address of a server: expected the form http://localhost:8000")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "the address of the server holds a user name or password: give the key by --connection.key-from"
        )
    if parts.query or parts.fragment:
        raise UserError(f"{shown!r} has a query or fragment: give the address without what follows ? or #")
    labels = host.removesuffix(".").split(".")
    if any(not 0 < len(label) <= 63 for label in labels) or len(host) > 253:
        raise UserError(f"{shown!r} is not the address of a server: a part of its host name is empty or too long")
    return url.rstrip("/")


def check_key(key: str) -> None:
    """Refuses an API key that cannot be sent in a header; the message does not show it.

    Raises:
      UserError: it holds something other than printable ASCII characters.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"the API key of {len(key)} characters holds white space, control characters, or characters that are not "
            "ASCII: check the environment variable named by --connection.key-from, a line end at its end for example"
        )


class HttpClient:
    """Sends requests to one server and reads its answers.

    Args:
      url: from `check_url`; paths are appended to it.
      key: sent as a bearer token unless it is empty.
      timeout: seconds for a whole exchange, from connecting to the last byte of the answer.
    """

    def __init__(self, url: str, *, key: str, timeout: float) -> None:
        check_key(key)
        self.url, self.timeout = url, timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A proxy from the environment is meant for other machines.
        local = urllib.parse.urlsplit(url).hostname in _LOCAL
        own: list[Any] = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*own, _NoRedirects, _Http, _Https)
        self._active: set[Exchange] = set()

    def send(
        self,
        path: str,
        body: bytes | None = None,
        *,
        max_bytes: int,
        timeout: float | None = None,
        exchange: "Exchange | None" = None,
    ) -> bytes:
        """Posts a body, or gets a page without one, and returns the body of the answer.

        Args:
          path: what to append to the server's address.
          body: JSON; None sends a GET request.
          max_bytes: maximum size of the answer.
          timeout: seconds for the exchange, instead of the client's.
          exchange: a handle that another thread may use to close the connection; one handle may serve several
            requests, one after the other.

        Raises:
          TryAgain: the server is busy, failed, closed the connection, or did not complete its answer in time.
          Refused: it refused the request, redirects it, or its answer is too large.
          NoServer: the connection was refused, or there is no such host.
        """
        seconds = self.timeout if timeout is None else timeout
        request = urllib.request.Request(self.url + path, body, self._headers)
        with self._deadline(seconds, exchange or Exchange()) as deadline:
            request.prm_deadline = deadline  # type: ignore[attr-defined]
            try:
                with self._opener.open(request, timeout=seconds) as response:
                    answer = _read(response, max_bytes)
            except urllib.error.HTTPError as error:
                raise _status(error) from None
            except TryAgain:
                if not deadline.passed:
                    raise
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                # Once the deadline has closed the socket, reading fails in several ways.
                raise _failure(error, deadline, seconds) from error
            if deadline.passed:
                raise TryAgain(f"no complete answer within {seconds:g} s")
        return answer

    def abort(self) -> None:
        """Ends the exchanges that are under way in other threads, as if their time were up."""
        for exchange in list(self._active):
            exchange.expire()

    @contextlib.contextmanager
    def _deadline(self, seconds: float, exchange: "Exchange") -> "Iterator[Exchange]":
        self._active.add(exchange)
        timer = threading.Timer(seconds, exchange.expire)
        timer.daemon = True
        timer.start()
        try:
            yield exchange
        finally:
            timer.cancel()
            self._active.discard(exchange)
            exchange.forget()


class Exchange:
    """Closes the connection of a request when its time is up, or when another thread asks for it.

    Attributes:
      passed: it has been closed; no further request can use it.
    """

    def __init__(self) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def watch(self, connected: socket.socket) -> None:
        """Adds a connection."""
        with self._lock:
            self._sockets.append(connected)
            if self.passed:
                self._close()

    def expire(self) -> None:
        """Closes the connection."""
        with self._lock:
            self.passed = True
            self._close()

    def forget(self) -> None:
        """The request has ended."""
        with self._lock:
            self._sockets.clear()

    def _close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _failure(error: Exception, exchange: Exchange, seconds: float) -> Exception:
    cause = getattr(error, "reason", error)
    if exchange.passed or isinstance(cause, TimeoutError):
        return TryAgain(f"no complete answer within {seconds:g} s")
    text = escape(str(cause) or type(cause).__name__, 200)
    if isinstance(error, urllib.error.URLError) and isinstance(cause, _NOBODY):
        return NoServer(text)
    return TryAgain(text)


class _Watched:
    """A connection whose socket the deadline knows as soon as it is open."""

    deadline: Exchange
    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.deadline.watch(self.sock)


class _Connection(_Watched, http.client.HTTPConnection):
    pass


class _SecureConnection(_Watched, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_opener(_Connection, req), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_opener(_SecureConnection, req), req)


def _opener(kind: Any, request: Any) -> Any:
    def make(host: str, **options: Any) -> Any:
        connection = kind(host, **options)
        connection.deadline = request.prm_deadline
        return connection

    return make


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another address would get the key and the prompts, and a redirected POST would become a GET."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _read(response: Any, max_bytes: int) -> bytes:
    declared = response.headers.get("Content-Length", "")
    parts, size = [], 0
    if declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes):
        raise Refused(200, f"its answer has {escape(declared, 30)} bytes, more than the {max_bytes} that were expected")
    while chunk := response.read1(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise Refused(200, f"its answer exceeds the {max_bytes} bytes that were expected")
        parts.append(chunk)
    if declared.isdigit() and size < int(declared):
        raise TryAgain(f"the connection closed after {size} of {declared} bytes")
    return b"".join(parts)


def _status(error: urllib.error.HTTPError) -> Exception:
    with contextlib.closing(error):
        if 300 <= error.code < 400:
            target = escape(error.headers.get("Location") or "another address", 120)
            return Refused(error.code, f"HTTP {error.code}: it redirects to {target}; give that address if it is right")
        what = f"HTTP {error.code}: {_reason(error)}"
        if error.code in (408, 429, 500, 502, 503, 504):
            return TryAgain(what, _seconds(error.headers.get("Retry-After")), answered=True)
        return Refused(error.code, what)


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says about its refusal."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException, ValueError):
        return escape(str(error.reason), 300)
    try:
        said = json.loads(text)
        said = said.get("error", said.get("message", said)) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
        return escape(str(said), 300)
    except (ValueError, RecursionError):
        return escape(text.strip() or str(error.reason), 300)


def _seconds(text: str | None) -> float:
    """The server's Retry-After, at most a minute; dates are ignored."""
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    return min(seconds, 60.0) if seconds > 0 else 0.0  # NaN compares as False
