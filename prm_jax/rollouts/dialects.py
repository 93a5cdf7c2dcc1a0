"""Requests and answers in token ids, and what a server's dialect must say about them.

A dialect is one server's HTTP interface: vLLM's, SGLang's or llama.cpp's. Each is a module of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from prm_jax.errors import UserError
from prm_jax.rollouts.http_client import TryAgain, escape
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.server_client import UnreachableError

DialectName = Literal["vllm", "sglang", "llama.cpp", "text"]

Ended = Literal["eos", "stop", "length", "abort"]

Call = Callable[..., Any]
"""``call(path)`` gets a page, ``call(path, body)`` posts a JSON object; both return the answer, {} for an empty one."""


@dataclass(frozen=True)
class TokenRequest:
    """One response, as it is asked of a server.

    Attributes:
      prompt: token ids, not empty.
      max_tokens: maximum length of the response.
      stop: strings that end it.
      sampling: how tokens are chosen; servers get every setting, since their defaults differ.
      seed: in [0, 2**63).
      request_id: unique on the server.
      model: what the server calls the model, or the adapter that it applies.
      adapter: name of the adapter, "" without one; servers that name adapters apart from models use it.
      logprobs: ask for the log-probabilities of the response's tokens.
      forced: draw this token, whatever its probability; for dialects that can score a token.
      alternatives: how many of the most probable first tokens to list.
      token_bytes: the tokenizer's bytes of a token; for dialects whose answers depend on where characters end.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    sampling: SamplingOptions = SamplingOptions()
    seed: int = 0
    request_id: str = ""
    model: str = ""
    adapter: str = ""
    logprobs: bool = True
    forced: int | None = None
    alternatives: int = 1
    token_bytes: Callable[[int], bytes] = lambda token: b""


@dataclass(frozen=True)
class TokenAnswer:
    """A server's response of n tokens.

    Attributes:
      tokens: n ids, including those of the stop string or end token that ended it.
      logp: n log-probabilities, None for a token for which the server sent none; None where none were asked for.
      end: "abort" when the server was told to end it.
      text: the response without special tokens; with or without the stop string.
      matched: the stop string that ended it, None for another end or where the server does not say.
      served: what the server says about its weights, compared with `Served.label`; None where it says nothing.
      alternatives: (token, log-probability) of the most probable first tokens, where they were asked for.
    """

    tokens: tuple[int, ...]
    logp: tuple[float | None, ...] | None
    end: Ended
    text: str
    matched: str | None = None
    served: str | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself; None where it says nothing.

    Attributes:
      models: names that requests may give; () accepts any.
      context: maximum length of a prompt with its response.
      vocabulary: number of tokens.
      label: what answers will say about its weights, see `TokenAnswer.served`.
      description: for messages.
    """

    models: tuple[str, ...] = ()
    context: int | None = None
    vocabulary: int | None = None
    label: str | None = None
    description: str = ""


@dataclass(frozen=True)
class Served:
    """Weights that a server has loaded.

    Attributes:
      model: name that requests give.
      adapter: name of the adapter, "" for whole weights.
      label: what answers must say, see `TokenAnswer.served`; None where answers say nothing.
    """

    model: str
    adapter: str = ""
    label: str | None = None


class Dialect(Protocol):
    """A server's interface.

    Attributes:
      name: as in ``--connection.dialect``.
      path: where responses are requested.
      tempered: the server's log-probabilities are those at the sampling temperature; False: at temperature 1.
      sends_partials: an aborted request is answered with the tokens drawn so far.
    """

    name: str
    path: str
    tempered: bool
    sends_partials: bool

    def info(self, call: Call) -> ServerInfo:
        """Asks the server about itself."""
        ...

    def body(self, request: TokenRequest) -> dict[str, Any]:
        """The JSON object that asks for a response."""
        ...

    def read(self, answer: Any, request: TokenRequest, where: str) -> TokenAnswer:
        """Reads the answer.

        Raises:
          UserError: it does not match the request; `where` names the server.
          TryAgain: the server gave the request up.
        """
        ...

    def abort(self, call: Call, request_id: str) -> None:
        """Ends a request early, where closing its connection is not enough."""
        ...

    def load_adapter(self, call: Call, name: str, path: str) -> Served:
        """Loads an adapter in PEFT's format from a directory that the server can read."""
        ...

    def unload_adapter(self, call: Call, name: str) -> None:
        """Forgets an adapter."""
        ...

    def load_weights(self, call: Call, path: str, version: int) -> Served:
        """Replaces the weights by those of a Hugging Face directory that the server can read."""
        ...


def detect(call: Call) -> DialectName:
    """The dialect of a server, or "text" for one that is none of the known ones.

    Args:
      call: raises `UserError` for a page that does not exist.

    Raises:
      UnreachableError: the server does not answer.
    """
    owner: dict[str, DialectName] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
    with _Absent():
        models = call("/v1/models")["data"]
        return owner[models[0]["owned_by"]]
    with _Absent():
        if "weight_version" in call("/model_info"):
            return "sglang"
    with _Absent():
        if "default_generation_settings" in call("/props"):
            return "llama.cpp"
    with _Absent():
        if "version" in call("/version"):
            return "vllm"
    return "text"


class _Absent:
    """Passes over a page that does not exist, or has other contents."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        if isinstance(error, UnreachableError):
            return False
        return isinstance(error, UserError | KeyError | IndexError | TypeError)


def field(found: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of an answer.

    Raises:
      UserError: it is missing, or of another type.
    """
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise UserError(f'{where} sent {escape(repr(value), 60)} as "{name}": expected {expected}')
    return value


def token_ids(found: Any, request: TokenRequest, what: str, where: str) -> tuple[int, ...]:
    """Token ids of an answer, checked.

    Raises:
      UserError: they are not ids, or more than were asked for.
    """
    if not isinstance(found, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in found):
        raise UserError(f"{where} sent {escape(repr(found), 60)} as {what}: expected a list of token ids")
    if not found:
        raise UserError(f"{where} sent a response without tokens: expected at least one, an end token if no other")
    if len(found) > request.max_tokens:
        raise UserError(f"{where} sent {len(found)} tokens: at most {request.max_tokens} were asked for")
    return tuple(found)


def log_probability(value: Any, token: Any, where: str) -> float:
    """A log-probability of an answer.

    Raises:
      UserError: it is not a finite number of at most 0, up to rounding.
    """
    # bool is an int, and integers beyond the range of floats raise.
    number = float(value) if type(value) is float or (type(value) is int and abs(value) < 1 << 53) else math.nan
    if not (math.isfinite(number) and number <= 0.01):
        raise UserError(
            f"{where} sent {escape(str(value)[:80], 40)} as the log-probability of token {token}: expected a number of "
            "at most 0"
        )
    return number


def check_prompt(found: Any, request: TokenRequest, where: str) -> None:
    """Refuses an answer to another prompt: a server that added a token or applied a template.

    Args:
      found: the prompt's ids, or their number, as the server counted them; None if it does not say.
      request: what was asked.
      where: the server.
    """
    if found is None or found == list(request.prompt) or found == len(request.prompt):
        return
    count = len(found) if isinstance(found, list) else found
    raise UserError(
        f"{where} read a prompt of {escape(str(count), 20)} tokens where {len(request.prompt)} were sent, or other "
        "ones: it must not add a beginning-of-text token or a template to prompts of token ids"
    )


def same_number(tokens: Sequence[int], logps: Sequence[Any], where: str) -> None:
    """Refuses an answer whose log-probabilities are not one per token."""
    if len(tokens) != len(logps):
        raise UserError(f"{where} sent {len(logps)} log-probabilities for {len(tokens)} tokens: expected one each")


def given_up(what: str) -> NoReturn:
    """Reports a request that the server ended without being asked to."""
    raise TryAgain(f"the server ended the request early ({escape(what, 80)})", answered=True)
