"""A client of servers with OpenAI's completions API over HTTP, such as vLLM, SGLang and llama.cpp.

Requests run in a pool of threads, are repeated where that can help, and end with an explanation where it cannot.
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prm_jax.errors import UnavailableError, UserError
from prm_jax.rollouts.completion_answer import Completion, CompletionRequest, read_answer
from prm_jax.rollouts.http_client import HttpClient, NoServer, Refused, TryAgain, check_url

_MEGABYTE, _TOKEN = 1 << 20, 1 << 12


@dataclasses.dataclass
class CompletionServer:
    """A server, given by the address of its API.

    Attributes:
      url: "http://host:8000", with or without /v1 or /v1/completions.
      model: name of the model on the server.
      any_model: accept answers in which the server names a different model.
      timeout: seconds to wait for a complete answer, from connecting to its last byte.
      retries: how often a request is repeated when the server is busy or fails (HTTP 408, 429, 500, 502, 503, 504),
        does not answer in time, or closes the connection.
      backoff: seconds before the first repetition, doubled for each further one; a longer Retry-After of the server
        takes precedence, up to a minute.
      workers: maximum number of concurrent requests.
      at_once: maximum number of completions per request, 0 for all; 1 for servers that ignore n.
      logprobs: request log-probabilities.
      key: API key, sent as a bearer token unless it is empty, and only to this address: redirects are refused.

    Raises:
      UserError: an address, a key or a number that cannot be used.
    """

    url: str
    model: str
    any_model: bool = False
    timeout: float = 300.0
    retries: int = 4
    backoff: float = 0.5
    workers: int = 16
    at_once: int = 0
    logprobs: bool = True
    key: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        """Checks the options and completes the address."""
        # Sockets accept no longer timeouts than about a day; NaN fails both comparisons.
        seconds = 0 < self.timeout <= 86400 and 0 <= self.backoff <= 86400
        if not seconds or self.retries < 0 or self.workers < 1 or self.at_once < 0:
            raise UserError(
                "a server needs timeout > 0 and backoff >= 0, both of at most 86400 seconds, retries >= 0, "
                "workers >= 1 and at_once >= 0"
            )
        base = check_url(self.url).removesuffix("/completions").removesuffix("/v1")
        self.url = f"{base}/v1/completions"
        self._client = HttpClient(self.url, key=self.key, timeout=self.timeout)
        self._stopped = threading.Event()
        self._answered = False

    def complete(
        self,
        requests: Sequence[CompletionRequest],
        on_answer: Callable[[Sequence[Completion]], None] = lambda answer: None,
    ) -> list[list[Completion]]:
        """Completes each request `n` times.

        Args:
          requests: what to complete.
          on_answer: called with each answer in order, as soon as all before it have arrived.

        Returns:
          For each request its completions, in order.

        Raises:
          UnavailableError: nothing answers at the address, or not in time, even when asked again.
          UserError: the server refuses a request, or its answer does not match it.
        """
        pieces = [(i, piece) for i, request in enumerate(requests) for piece in self._pieces(request)]
        found: list[list[Completion]] = [[] for _ in requests]
        self.start()
        pool = ThreadPoolExecutor(min(self.workers, max(len(pieces), 1)))
        try:
            for (i, _), answer in zip(pieces, pool.map(lambda piece: self.ask(piece[1]), pieces), strict=True):
                found[i] += answer
                on_answer(answer)
        finally:
            self.stop()
            pool.shutdown(wait=False, cancel_futures=True)
        return found

    def start(self) -> None:
        """Allows requests again after `stop`."""
        self._stopped.clear()

    def stop(self) -> None:
        """Ends requests that are under way in other threads, and those that wait to be repeated."""
        self._stopped.set()
        self._client.abort()

    def _pieces(self, request: CompletionRequest) -> list[CompletionRequest]:
        size = self.at_once or request.n
        counts = [min(size, request.n - start) for start in range(0, request.n, size)]
        return [request._replace(n=n, seed=request.seed + i) for i, n in enumerate(counts)]

    def ask(self, request: CompletionRequest) -> list[Completion]:
        """One request to the server, however many completions it asks for; repeated where that can help.

        Raises:
          UserError: see `complete`.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt),
            "n": request.n,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if self.logprobs:
            body["logprobs"] = 1
        answer = self._post(json.dumps(body).encode(), request)
        model = "" if self.any_model else self.model
        return read_answer(answer, request, model=model, logprobs=self.logprobs, where=self.url)

    def _post(self, body: bytes, request: CompletionRequest) -> bytes:
        # A token takes about a hundred bytes with its log-probability; servers may add alternatives to each.
        limit = _MEGABYTE + request.n * request.max_tokens * _TOKEN
        for attempt in range(self.retries + 1):
            try:
                answer = self._client.send("", body, max_bytes=limit)
                self._answered = True
                return answer
            except Refused as error:
                many = (
                    f"; if {request.n} completions per request are too many for it, ask for fewer "
                    "(--connection.at-once)"
                )
                more = many if request.n > 1 and 400 <= error.status < 500 else ""
                raise UserError(f"{self.url} refused the request, {error}{more}") from error
            except (NoServer, TryAgain) as error:
                # Before its first answer the address is probably wrong; later the server may be restarting.
                if isinstance(error, NoServer) and not self._answered:
                    what = f"no server answers at {self.url} ({error}): is it running there?"
                    raise UnavailableError(what) from error
                if isinstance(error, TryAgain) and error.answered:
                    self._answered = True
                if attempt == self.retries:
                    tries = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise UnavailableError(f"{self.url}: {error}; asked {tries}") from error
                if self._stopped.wait(max(self.backoff * 2**attempt, getattr(error, "after", 0.0))):
                    raise UserError(f"{self.url}: another request failed") from error
        raise AssertionError
