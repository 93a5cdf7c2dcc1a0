"""llama.cpp's server: its own /completion with token ids; other weights need a restart."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from prm_jax.errors import UserError
from prm_jax.rollouts.dialects import (
    Call,
    Ended,
    Served,
    ServerInfo,
    TokenAnswer,
    TokenRequest,
    field,
    given_up,
    log_probability,
    token_ids,
)
from prm_jax.rollouts.http_client import escape

_RANDOM_SEED = 2**32 - 1
"""llama.cpp takes this seed as a request for a random one."""
_CERTAIN = 1e4
"""A bias that makes a token certain; the log-probabilities are those of the unbiased distribution."""


class LlamaDialect:
    """See `Dialect`.

    llama.cpp reports log-probabilities at temperature 1. It sends none for the tokens of a stop string, nor for those
    that end inside a character; `RemoteServer.ask` asks for these again.
    """

    name = "llama.cpp"
    path = "/completion"
    tempered = False
    sends_partials = False

    def info(self, call: Call) -> ServerInfo:
        """See `Dialect`."""
        props = call("/props")
        settings = field(props, "default_generation_settings", dict, "the server")
        models = call("/v1/models").get("data") or [{}]
        vocabulary = (models[0].get("meta") or {}).get("n_vocab")
        return ServerInfo(
            context=settings.get("n_ctx") or None, vocabulary=vocabulary, label=_file_name(props.get("model_path")),
            description=f"llama.cpp with {props.get('model_path')} ({props.get('model_ftype')})",
        )  # fmt: skip

    def body(self, request: TokenRequest) -> dict[str, Any]:
        """See `Dialect`."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "prompt": list(request.prompt),
            "n_predict": request.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": 0.0,
            "samplers": ["temperature", "top_k", "top_p"],  # the order of `models.sample`
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": request.seed % _RANDOM_SEED,
            "stop": list(request.stop),
            "n_probs": request.alternatives if request.logprobs else 0,
            "post_sampling_probs": False,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
        }
        if request.forced is not None:
            body |= {"logit_bias": [[request.forced, _CERTAIN]], "temperature": 0.0}
        return body

    def read(self, answer: Any, request: TokenRequest, where: str) -> TokenAnswer:
        """See `Dialect`."""
        if not isinstance(answer, dict) or not answer.get("tokens"):
            raise UserError(f'{where} sent no "tokens": it is too old for return_tokens; use a newer llama.cpp')
        tokens = token_ids(answer["tokens"], request, '"tokens"', where)
        kind, word = answer.get("stop_type"), answer.get("stopping_word")
        if kind not in ("eos", "limit", "word"):
            given_up(f"stop_type {kind!r}")
        logp = self._logp(tokens, answer, request, where) if request.logprobs else None
        end: Ended = "length" if kind == "limit" else "stop" if kind == "word" else "eos"
        return TokenAnswer(
            tokens, logp, end, field(answer, "content", str, where),
            word if end == "stop" and isinstance(word, str) else None,
            _file_name(answer.get("model")),
            _alternatives(answer, where) if request.alternatives > 1 else (),
        )  # fmt: skip

    def _logp(
        self, tokens: tuple[int, ...], answer: dict[str, Any], request: TokenRequest, where: str
    ) -> tuple[float | None, ...]:
        """The log-probabilities that were sent, paired by id."""
        stopped = answer.get("stop_type") == "word"
        found = answer.get("completion_probabilities", [])
        if not isinstance(found, list):
            found = []
        sent = [at for at, whole in enumerate(_whole_characters(tokens, request.token_bytes)) if whole]
        ids = [one.get("id") if isinstance(one, dict) else None for one in found]
        if ids != [tokens[at] for at in sent[: len(ids)]] or (len(ids) < len(sent) and not stopped):
            raise UserError(
                f"{where} sent log-probabilities of the tokens {escape(str(ids), 60)} for a response of the tokens "
                f"{escape(str(list(tokens)), 60)}: expected one for every token that ends with a whole character, "
                "except those of a stop string"
            )
        known: list[float | None] = [None] * len(tokens)
        for at, one in zip(sent, found, strict=False):
            known[at] = log_probability(one.get("logprob"), tokens[at], where)
        return tuple(known)

    def abort(self, call: Call, request_id: str) -> None:
        """Nothing: llama.cpp ends a request whose connection is closed."""

    def load_adapter(self, call: Call, name: str, path: str) -> Served:
        """Refuses: llama.cpp reads adapters when it starts."""
        raise UserError("llama.cpp cannot load an adapter while it runs: export whole weights (a GGUF file) instead")

    def unload_adapter(self, call: Call, name: str) -> None:
        """Nothing, see `load_adapter`."""

    def load_weights(self, call: Call, path: str, version: int) -> Served:
        """Refuses: llama.cpp reads weights when it starts."""
        raise UserError("llama.cpp cannot load other weights while it runs: it must be restarted with them")


def _alternatives(answer: dict[str, Any], where: str) -> tuple[tuple[int, float], ...]:
    first = field(answer, "completion_probabilities", list, where)[0]
    found = field(first, "top_logprobs", list, where)
    return tuple((field(one, "id", int, where), log_probability(one.get("logprob"), one["id"], where)) for one in found)


def _file_name(path: Any) -> str | None:
    return pathlib.PurePath(path).name if isinstance(path, str) and path else None


def _whole_characters(tokens: Sequence[int], token_bytes: Callable[[int], bytes]) -> list[bool]:
    """Whether the text up to each token ends with a whole character, as llama.cpp judges by its last bytes."""
    text, whole = b"", []
    for token in tokens:
        text = (text + token_bytes(token))[-4:]
        whole.append(not _ends_inside(text))
    return whole


def _ends_inside(text: bytes) -> bool:
    for count, byte in enumerate(reversed(text), 1):
        if byte & 0xC0 != 0x80:  # not a continuation: the character's first byte says its length
            return count < (4 if byte & 0xF8 == 0xF0 else 3 if byte & 0xF0 == 0xE0 else 2 if byte & 0xE0 == 0xC0 else 1)
    return False
