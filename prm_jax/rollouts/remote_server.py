"""A server with its dialect: what it serves, and responses that are checked against what was asked."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from prm_jax.errors import UserError
from prm_jax.rollouts.dialects import Dialect, Served, ServerInfo, TokenAnswer, TokenRequest, detect
from prm_jax.rollouts.http_client import TryAgain
from prm_jax.rollouts.llama_dialect import LlamaDialect
from prm_jax.rollouts.sampling_options import Connection
from prm_jax.rollouts.server_client import Handle, ServerClient
from prm_jax.rollouts.sglang_dialect import SglangDialect
from prm_jax.rollouts.vllm_dialect import VllmDialect

_MEGABYTE, _TOKEN = 1 << 20, 1 << 12
_MANY = 512

Chosen = Literal["auto", "vllm", "sglang", "llama.cpp"]


class RemoteServer:
    """A server that exchanges token ids.

    Args:
      url: its address.
      model: name of the model, unless `connection` gives another; "" for the only one.
      tokenizer: of the policy.
      dialect: unless `connection` names one; "auto" asks the server.
      connection: how to talk to it.
      say: gets one-line warnings.

    Attributes:
      client: talks to it.
      dialect: its interface.
      info: what it said about itself.
      served: the weights that requests are sent to; set by updates.

    Raises:
      UserError: no server, one that exchanges text only, or one with another model or vocabulary.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Any,
        *,
        dialect: Chosen = "auto",
        connection: Connection = Connection(),
        say: Callable[[str], None],
    ) -> None:
        self._connection, self._say = connection, say
        self._vocabulary, self._end_token = tokenizer.vocab_size, tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
        self.client = ServerClient(url, connection, say)
        named = connection.dialect if connection.dialect != "auto" else dialect
        self.dialect = _make_dialect(detect(self.client.call) if named == "auto" else named, self.url, connection)
        self.info = self.dialect.info(self.client.call)
        self.served = self._initial(connection.model or model)

    @property
    def url(self) -> str:
        """Its address."""
        return self.client.url

    def reconnect(self, url: str) -> None:
        """Talks to it at this address from now on, after a restart."""
        self.client = ServerClient(url, self._connection, self._say)
        self.info = self.dialect.info(self.client.call)
        self._check_vocabulary()

    def ask(
        self, request: TokenRequest, handle: Handle, *, served: Served, wanted: Callable[[], bool] = lambda: True
    ) -> TokenAnswer:
        """One response, with the log-probability of each token if they are asked for.

        Args:
          request: `model` and `adapter` are set here.
          handle: lets another thread abandon the request.
          served: the weights that must answer.
          wanted: False once an aborted response will do.

        Raises:
          UserError: see `ServerClient.ask` and `Dialect.read`, or other weights answer.
          Abandoned: by the handle.
        """
        request = dataclasses.replace(request, model=served.model, adapter=served.adapter)
        answer = self._ask(request, handle, served, wanted)
        logp = answer.logp
        if logp is None or None not in logp:
            return answer
        known = [
            self._score(request, handle, served, answer.tokens[: i + 1]) if x is None else x for i, x in enumerate(logp)
        ]
        return dataclasses.replace(answer, logp=tuple(known))

    def _ask(
        self, request: TokenRequest, handle: Handle, served: Served, wanted: Callable[[], bool] = lambda: True
    ) -> TokenAnswer:
        def read(found: Any) -> TokenAnswer:
            answer = self.dialect.read(found, request, self.url)
            if None not in (served.label, answer.served) and served.label != answer.served:
                raise TryAgain(
                    f"it answered with the weights {answer.served!r} instead of {served.label!r}", answered=True
                )
            if answer.end == "abort" and wanted():
                raise TryAgain("the server ended the request early", answered=True)
            return answer

        limit = _MEGABYTE + (len(request.prompt) + request.max_tokens + request.alternatives) * _TOKEN
        return self.client.ask(self.dialect.path, self.dialect.body(request), max_bytes=limit, handle=handle, read=read)

    def _score(self, request: TokenRequest, handle: Handle, served: Served, tokens: tuple[int, ...]) -> float | None:
        """The log-probability of the last of these tokens of a response."""
        wanted = tokens[-1]
        one = dataclasses.replace(
            request, prompt=(*request.prompt, *tokens[:-1]), max_tokens=1, stop=(), forced=wanted,
            request_id=f"{request.request_id}-{len(tokens)}",
        )  # fmt: skip
        found = self._ask(one, handle, served)
        if found.tokens != (wanted,) or not found.logp:
            raise UserError(f"{self.url} drew the token {found.tokens} where {wanted} was forced")
        if found.logp[0] is not None:
            return found.logp[0]
        # A token that ends inside a character has no log-probability as the drawn one, but has as one of many.
        for count in (_MANY, self.info.vocabulary or _MANY):
            listed = dataclasses.replace(one, forced=self._end_token, alternatives=count)
            known = dict(self._ask(listed, handle, served).alternatives)
            if wanted in known:
                return known[wanted]
        return None

    def _initial(self, model: str) -> Served:
        """The weights that the server has when it is first asked."""
        self._check_vocabulary()
        info = self.info
        if info.models:
            if not model and len(info.models) == 1:
                model = info.models[0]
            if model not in info.models and self._connection.any_model:
                model = info.models[0]
            if model not in info.models:
                raise UserError(
                    f"{self.url} serves the models {', '.join(info.models[:5])}, not {model!r}: give the server's name "
                    "for the model (--connection.model)"
                )
        label = info.label if info.label is not None or not info.models else model
        return Served(model, label=None if self._connection.any_model else label)

    def _check_vocabulary(self) -> None:
        info: ServerInfo = self.info
        if info.vocabulary is not None and info.vocabulary < self._vocabulary:
            raise UserError(
                f"{self.url}: {info.description} has a vocabulary of {info.vocabulary} tokens, the policy's tokenizer "
                f"{self._vocabulary}: start the server with the policy's model"
            )


def _make_dialect(name: str, url: str, connection: Connection) -> Dialect:
    if name == "text":
        raise UserError(
            f"{url} exchanges text, not token ids: use vLLM, SGLang or llama.cpp, or name the server's dialect "
            "(--connection.dialect) if it is one of these; other servers can serve search and label only"
        )
    at = connection.logprobs_at
    if name == "vllm":
        return VllmDialect(tempered=at == "sampling")
    if name == "sglang":
        return SglangDialect(tempered=at != "one")
    if at == "sampling":
        raise UserError("llama.cpp sends log-probabilities at temperature 1: leave --connection.logprobs-at out")
    return LlamaDialect()
