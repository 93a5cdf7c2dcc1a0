"""Requests, responses and the protocol of sampling engines, whether they run in this process or on a server."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from prm_jax.errors import UserError

Ticket = int
"""Identifies a submitted request."""

End = Literal["eos", "stop", "length", "cancelled"]

MAX_PROMPT_ID = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """One response to sample.

    Attributes:
      prompt: token ids, not empty.
      prompt_id: in [0, 2**31); together with `sample` and the engine's key it determines the response's randomness.
      sample: >= 0, the response's index among the samples of this prompt.
      max_new_tokens: the response's maximum length.
      stop: index of the engine's stop set that ends the response.
    """

    prompt: tuple[int, ...]
    prompt_id: int
    sample: int
    max_new_tokens: int
    stop: int = 0


@dataclass(frozen=True)
class Response:
    """A sampled response of n tokens.

    Attributes:
      tokens: [n] i32, including the stop string or end token that ended it.
      logp: [n] f32, log-probability of each token at the sampling temperature before truncation; None when the engine
        was not asked for log-probabilities. A server's tokens may differ from the tokenizer's: then each of the
        server's log-probabilities is added to the token in which its text starts, and the sum is exact.
      version: [n] i32, version of the weights that sampled each token.
      end: why the response ended: "eos", an end token; "stop", a string of the stop set; "length", `max_new_tokens`;
        "cancelled", by `Engine.cancel`.
      stop_index: position in the stop set of the string that ended it, -1 otherwise.

    An engine that accepts forced tokens also gives ``sampled`` [n] bool, False for these, and one that truncates
    ``log_mass`` [n] f32, log of the probability that truncation kept.
    """

    tokens: np.ndarray
    logp: np.ndarray | None
    version: np.ndarray
    end: End
    stop_index: int = -1


@dataclass
class EngineStats:
    """Counters of an engine since it was made.

    Attributes:
      requests: submitted.
      responses: completed or cancelled.
      tokens: in these responses.
      calls: runs of a compiled program, or requests to a server.
      slot_steps: token positions that were computed, whether used or not; 0 when unknown.
    """

    requests: int = 0
    responses: int = 0
    tokens: int = 0
    calls: int = 0
    slot_steps: int = 0

    @property
    def utilisation(self) -> float:
        """Share of the computed positions that ended up in a response; NaN when unknown."""
        return self.tokens / self.slot_steps if self.slot_steps else float("nan")


class Engine(Protocol):
    """Samples responses to requests. An engine serves one caller at a time.

    Attributes:
      tokenizer: encodes texts and finds stop strings; None for an engine without either.
      stops: the stop sets that `Request.stop` indexes; each a tuple of strings. End tokens always end a response.
      context: maximum length of a prompt with its response, None when unknown.
    """

    tokenizer: Any
    stops: tuple[tuple[str, ...], ...]
    context: int | None

    def submit(self, requests: Iterable[Request]) -> list[Ticket]:
        """Queues requests; returns a ticket for each, in order."""
        ...

    def poll(self, *, timeout: float | None = None) -> list[tuple[Ticket, Response]]:
        """Responses that have completed since the last call, in any order; [] when nothing is queued.

        Works or waits until there is at least one, or until `timeout` seconds have passed where the engine can stop
        waiting.
        """
        ...

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """Ends requests early; returns what they have produced. Completed and unknown tickets are ignored."""
        ...

    def update(self, params: Any, version: int) -> None:
        """Samples from these parameters from now on."""
        ...

    def reserve(self, columns: int) -> None:
        """Makes room for prompts and responses of this length together, where longer requests would cost time later."""
        ...

    def stats(self) -> EngineStats:
        """The counters."""
        ...


OnProgress = Callable[[int, int], None]
"""Called with (responses, tokens) as they complete."""


def sample_all(
    engine: Engine, requests: Sequence[Request], on_progress: OnProgress = lambda responses, tokens: None
) -> list[Response]:
    """Submits requests and waits for all responses.

    Args:
      engine: an idle engine.
      requests: what to sample.
      on_progress: called after each poll with the number of new responses and of their tokens.

    Returns:
      The responses, in the order of the requests.
    """
    return wait_for(engine, engine.submit(requests), on_progress)


def wait_for(
    engine: Engine, tickets: Sequence[Ticket], on_progress: OnProgress = lambda responses, tokens: None
) -> list[Response]:
    """The responses of all requests of an engine, in the order of `tickets`; see `sample_all`."""
    found: dict[Ticket, Response] = {}
    while len(found) < len(tickets):
        new = engine.poll()
        if not new:
            raise RuntimeError(f"the engine lost {len(tickets) - len(found)} of {len(tickets)} requests")
        found.update(new)
        on_progress(len(new), sum(len(response.tokens) for _, response in new))
    return [found[ticket] for ticket in tickets]


def check_request(request: Request, engine: Engine) -> None:
    """Refuses a request that the engine cannot serve.

    Raises:
      UserError: an empty prompt, a number out of range, or a prompt that exceeds the context with its response.
    """
    if not request.prompt:
        raise UserError("a request has an empty prompt: give at least one token, such as the beginning-of-text token")
    if not 0 <= request.prompt_id <= MAX_PROMPT_ID or request.sample < 0:
        raise UserError(
            f"a request has prompt_id {request.prompt_id} and sample {request.sample}: expected 0 <= prompt_id < 2**31 "
            "and sample >= 0"
        )
    if request.max_new_tokens < 1:
        raise UserError(f"a request has max_new_tokens {request.max_new_tokens}: expected at least 1")
    if not 0 <= request.stop < len(engine.stops):
        raise UserError(f"a request has stop set {request.stop}, but the engine has {len(engine.stops)}")
    length = len(request.prompt) + request.max_new_tokens
    if engine.context is not None and length > engine.context:
        raise UserError(
            f"a prompt of {len(request.prompt)} tokens with a response of {request.max_new_tokens} exceeds the model's "
            f"context of {engine.context} tokens: shorten the prompt or the response"
        )


def behaviour_logp(response: Response) -> np.ndarray:
    """[n] f32: log-probability with which each token was drawn, truncation included; 0 where forced, NaN if unknown."""
    if response.logp is None:
        return np.full(len(response.tokens), np.nan, np.float32)
    mass = getattr(response, "log_mass", None)
    return response.logp if mass is None else response.logp - mass


def drawn_tokens(response: Response) -> np.ndarray:
    """[n] bool: False for tokens that the model did not draw."""
    given = getattr(response, "sampled", None)
    return np.ones(len(response.tokens), bool) if given is None else np.asarray(given, bool)


def cancelled(version: int) -> Response:
    """The response of a request that was cancelled before its first token."""
    nothing = np.zeros(0, np.int32)
    return Response(nothing, np.zeros(0, np.float32), np.full(0, version, np.int32), "cancelled")


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """The stop string that is completed first in a text, as (its position in `stops`, offset of its end).

    Of strings that end together, the longest counts. None when the text holds none.
    """
    found = [(text.index(stop) + len(stop), -len(stop), i) for i, stop in enumerate(stops) if stop in text]
    if not found:
        return None
    end, _, index = min(found)
    return index, end
