"""A client of servers that speak the completions API of OpenAI over HTTP, as vLLM, SGLang, llama.cpp and others do.

Only the standard library is used: requests run in a pool of threads, are tried again where that can help, and end with
an explanation where it cannot.
"""

import dataclasses
import http.client
import json
import math
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from prm_jax.errors import UserError

End = Literal["text", "stop", "either", "length"]


class CompletionRequest(NamedTuple):
    """What is asked for.

    Attributes:
      prompt: a text, or token ids.
      n: number of completions.
      max_tokens: of each.
      stop: texts at which a completion ends.
      temperature: of the sampling.
      top_p: share of the probability mass to sample from.
      seed: of the sampling, for servers that take one.
    """

    prompt: str | Sequence[int]
    n: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


class Completion(NamedTuple):
    """One completion.

    Attributes:
      text: without the stop text.
      end: why it is over. "text": the model ended it; "stop": at the stop text `matched`; "either": one of these, the
        server does not say which; "length": it was cut off.
      matched: None unless `end` is "stop".
      logps: (token's text, its log-probability) in order, None where the server gave none.
    """

    text: str
    end: End
    matched: str | None
    logps: tuple[tuple[str, float], ...] | None


@dataclasses.dataclass
class CompletionServer:
    """A server, by the address of its API.

    Attributes:
      url: "http://host:8000", with or without /v1 or /v1/completions.
      model: what the server calls the model.
      timeout: seconds to wait for an answer.
      retries: how often a request is tried again: when the server is busy or fails (HTTP 408, 429, 500, 502, 503,
        504), does not answer in time, or hangs up.
      backoff: seconds before the first of these, doubled each time; a server's own Retry-After counts if longer.
      workers: most requests at the same time.
      at_once: most completions of one request, 0 for all; 1 for servers that ignore n.
      logprobs: ask for log-probabilities.
      key: sent as bearer token if not empty.

    Raises:
      UserError: an address that is not one of HTTP.
    """

    url: str
    model: str
    timeout: float = 300.0
    retries: int = 4
    backoff: float = 0.5
    workers: int = 16
    at_once: int = 0
    logprobs: bool = True
    key: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        """Completes the address."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{self.url!r} is no address of a server: it should look like http://localhost:8000")
        # A day at most: sockets take no longer times, and NaN is none.
        seconds = 0 < self.timeout <= 86400 and 0 <= self.backoff <= 86400
        if not seconds or self.retries < 0 or self.workers < 1 or self.at_once < 0:
            raise UserError(
                "a server needs timeout > 0 and backoff >= 0, both of at most 86400 seconds, retries >= 0, "
                "workers >= 1 and at_once >= 0"
            )
        base = self.url.rstrip("/").removesuffix("/completions").removesuffix("/v1")
        self.url = f"{base}/v1/completions"
        # A proxy of the environment is for the world outside.
        own = [urllib.request.ProxyHandler({})] if parts.hostname in ("localhost", "127.0.0.1", "::1") else []
        self._opener = urllib.request.build_opener(*own)
        self._stopped = threading.Event()
        self._answered = False

    def complete(
        self,
        requests: Sequence[CompletionRequest],
        on_answer: Callable[[Sequence[Completion]], None] = lambda answer: None,
    ) -> list[list[Completion]]:
        """Completions of each request, `n` of them, in order.

        Args:
          requests: what to ask.
          on_answer: called with each answer, in order, as soon as those before it are there.

        Returns:
          For each request its completions.

        Raises:
          UserError: nobody answers at the address, the server refuses the request, does not answer in time or fails
            even when asked again, or its answer is not what was asked for.
        """
        pieces = [(i, piece) for i, request in enumerate(requests) for piece in self._pieces(request)]
        found: list[list[Completion]] = [[] for _ in requests]
        self._stopped.clear()
        pool = ThreadPoolExecutor(min(self.workers, max(len(pieces), 1)))
        try:
            for (i, _), answer in zip(pieces, pool.map(lambda piece: self._ask(piece[1]), pieces), strict=True):
                found[i] += answer
                on_answer(answer)
        finally:
            self._stopped.set()  # wakes those that wait for another try after a failure elsewhere
            pool.shutdown(wait=False, cancel_futures=True)
        return found

    def _pieces(self, request: CompletionRequest) -> list[CompletionRequest]:
        size = self.at_once or request.n
        counts = [min(size, request.n - start) for start in range(0, request.n, size)]
        return [request._replace(n=n, seed=request.seed + i) for i, n in enumerate(counts)]

    def _ask(self, request: CompletionRequest) -> list[Completion]:
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
        return self._read(self._post(json.dumps(body).encode(), request.n), request)

    def _post(self, body: bytes, asked: int) -> bytes:
        for attempt in range(self.retries + 1):
            try:
                return self._post_once(body, asked)
            except _Again as again:
                if attempt == self.retries:
                    tries = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise UserError(f"{self.url}: {again}; asked {tries}") from again
                if self._stopped.wait(max(self.backoff * 2**attempt, again.after)):
                    raise UserError(f"{self.url}: another request failed") from again
        raise AssertionError

    def _post_once(self, body: bytes, asked: int) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url, body, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            self._answered = True
            what = f"HTTP {error.code}: {_reason(error)}"
            if error.code in (408, 429, 500, 502, 503, 504):
                raise _Again(what, _seconds(error.headers.get("Retry-After"))) from error
            many = f"; if {asked} completions of one request are too many for it, ask for fewer (--connection.at-once)"
            raise UserError(f"{self.url} refused the request, {what}{many if asked > 1 else ''}") from error
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                raise _Again(f"no answer within {self.timeout:g} s") from error
            # Without a single answer so far the address is wrong, or the server not there yet; one that hangs up is.
            if not self._answered and isinstance(error, urllib.error.URLError):
                raise UserError(f"no server answers at {self.url} ({cause}): is it running there?") from error
            raise _Again(str(cause) or type(cause).__name__) from error
        self._answered = True
        return answer

    def _read(self, answer: bytes, request: CompletionRequest) -> list[Completion]:
        try:
            read = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.url} answered what is no JSON: {answer[:80]!r}") from error
        choices = read.get("choices") if isinstance(read, dict) else None
        if not isinstance(choices, list):
            raise UserError(f'{self.url} answered without "choices": {answer[:200]!r}')
        if len(choices) != request.n:
            raise UserError(
                f"{self.url} answered with {len(choices)} completions, asked for {request.n}: a server that gives one "
                "at a time has to be asked for one at a time (--connection.at-once 1)"
            )
        if all(isinstance(c, dict) and isinstance(c.get("index"), int) for c in choices):
            choices = sorted(choices, key=lambda c: c["index"])
        return [self._choice(choice) for choice in choices]

    def _choice(self, choice: Any) -> Completion:
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise UserError(f'{self.url} answered with a completion without "text": {str(choice)[:200]}')
        end, matched = _end(choice)
        if end is None:
            raise UserError(f"{self.url} ended a completion for the reason {choice.get('finish_reason')!r}")
        logps = _logps(choice.get("logprobs")) if self.logprobs else None
        if self.logprobs and logps is None:
            raise UserError(
                f"{self.url} sent no log-probabilities: have it send them, or do not ask for them "
                "(--connection.no-logprobs)"
            )
        return Completion(choice["text"], end, matched, logps)


class _Again(Exception):
    """The request may succeed later."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


def _end(choice: Mapping[str, Any]) -> tuple[End | None, str | None]:
    """(why a completion is over, at which stop text): in the words of the API, and in those of several servers."""
    reason = choice.get("finish_reason")
    if reason == "length":
        return "length", None
    if reason in ("eos", "eos_token"):
        return "text", None
    if reason == "stop_sequence":
        return "either", None
    if reason != "stop":
        return None, None
    for name in ("stop_reason", "matched_stop"):  # vLLM, SGLang: the text, or else the token or nothing
        if name in choice:
            matched = choice[name]
            return ("stop", matched) if isinstance(matched, str) else ("text", None)
    kind, word = choice.get("stop_type"), choice.get("stopping_word")  # llama.cpp
    if kind == "word" and isinstance(word, str):
        return "stop", word
    return ("text" if kind == "eos" else "either"), None


def _logps(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    """Tokens and their log-probabilities, in the form of completions or that of chats."""
    if not isinstance(logprobs, dict):
        return None
    if isinstance(logprobs.get("content"), list):
        pairs = [(one.get("token"), one.get("logprob")) for one in logprobs["content"] if isinstance(one, dict)]
    elif isinstance(logprobs.get("token_logprobs"), list) and isinstance(logprobs.get("tokens"), list):
        pairs = list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=False))
    else:
        return None
    found = []
    for token, logp in pairs:
        # Above 0 by rounding at most.
        if not isinstance(logp, int | float) or not math.isfinite(logp) or logp > 0.01:
            what = f"the server sent {logp!r} as the log-probability of the token {token!r}"
            raise UserError(f"{what}: expected a number of at most 0")
        found.append((str(token), float(logp)))
    return tuple(found)


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says of its refusal."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        said = json.loads(text)
        said = said.get("error", said.get("message", said)) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
        return str(said)[:300]
    except ValueError:
        return text.strip()[:300] or error.reason


def _seconds(text: str | None) -> float:
    try:
        return min(float(text or 0), 60.0)
    except ValueError:  # a date
        return 0.0
