"""SGLang's server: its own /generate with token ids, adapters at run time, weights from a directory."""

from typing import Any

from prm_jax.errors import UserError
from prm_jax.rollouts.dialects import (
    Call,
    Ended,
    Served,
    ServerInfo,
    TokenAnswer,
    TokenRequest,
    check_prompt,
    field,
    given_up,
    log_probability,
    token_ids,
)


class SglangDialect:
    """See `Dialect`.

    Attributes:
      tempered: True for SGLang's default; False for a server with SGLANG_RETURN_ORIGINAL_LOGPROB=1.
    """

    name = "sglang"
    path = "/generate"
    sends_partials = True

    def __init__(self, *, tempered: bool = True) -> None:
        self.tempered = tempered

    def info(self, call: Call) -> ServerInfo:
        """See `Dialect`."""
        found = call("/model_info")
        version = found.get("weight_version")
        path = field(found, "model_path", str, "the server")
        return ServerInfo(label=None if version is None else str(version), description=f"SGLang with {path}")

    def body(self, request: TokenRequest) -> dict[str, Any]:
        """See `Dialect`."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "input_ids": list(request.prompt),
            "sampling_params": {
                "max_new_tokens": request.max_tokens,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k or -1,
                "top_p": sampling.top_p,
                "min_p": 0.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "repetition_penalty": 1.0,
                "n": 1,
                "stop": list(request.stop),
                "no_stop_trim": True,
                "sampling_seed": request.seed,
            },
            "return_logprob": request.logprobs,
            "logprob_start_len": -1,
            "top_logprobs_num": 0,
            "stream": False,
            "rid": request.request_id,
        }
        if request.adapter:
            body["lora_path"] = request.adapter
        return body

    def read(self, answer: Any, request: TokenRequest, where: str) -> TokenAnswer:
        """See `Dialect`."""
        one = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
        meta = field(one, "meta_info", dict, where)
        finish = field(meta, "finish_reason", dict, where)
        kind, matched = finish.get("type"), finish.get("matched")
        if kind not in ("stop", "length", "abort"):
            given_up(f"finish_reason {kind!r}")
        pairs = self._pairs(meta, where) if request.logprobs else None
        ids = one.get("output_ids") if pairs is None else [token for token, _ in pairs]
        if pairs is not None and isinstance(one.get("output_ids"), list) and one["output_ids"] != ids[: len(ids)]:
            raise UserError(f"{where} sent other ids in output_ids than in output_token_logprobs: expected the same")
        served = meta.get("weight_version")
        label = None if served is None else str(served)
        if kind == "abort" and not ids:
            return TokenAnswer((), () if request.logprobs else None, "abort", "", served=label)
        tokens = token_ids(ids, request, "output ids", where)
        check_prompt(meta.get("prompt_tokens"), request, where)
        end: Ended = kind
        if kind == "stop" and not isinstance(matched, str):
            end = "eos"
        return TokenAnswer(
            tokens, None if pairs is None else tuple(logp for _, logp in pairs), end, field(one, "text", str, where),
            matched if end == "stop" else None, label,
        )  # fmt: skip

    def _pairs(self, meta: dict[str, Any], where: str) -> list[tuple[int, float]]:
        """(token, log-probability) of each token."""
        pairs = []
        for entry in field(meta, "output_token_logprobs", list, where):
            if not isinstance(entry, list) or len(entry) < 2 or type(entry[1]) is not int:
                raise UserError(
                    f"{where} sent {str(entry)[:60]!r} in output_token_logprobs: expected [log-probability, id, text]"
                )
            pairs.append((entry[1], log_probability(entry[0], entry[1], where)))
        return pairs

    def abort(self, call: Call, request_id: str) -> None:
        """See `Dialect`: SGLang answers the request with what it has written."""
        call("/abort_request", {"rid": request_id})

    def load_adapter(self, call: Call, name: str, path: str) -> Served:
        """See `Dialect`; needs ``--enable-lora``."""
        _check(call("/load_lora_adapter", {"lora_name": name, "lora_path": path}), f"the adapter {path}")
        return Served(name, name)

    def unload_adapter(self, call: Call, name: str) -> None:
        """See `Dialect`."""
        _check(call("/unload_lora_adapter", {"lora_name": name}), f"unloading {name}")

    def load_weights(self, call: Call, path: str, version: int) -> Served:
        """See `Dialect`."""
        body = {
            "model_path": path, "weight_version": str(version), "abort_all_requests": True, "flush_cache": True,
        }  # fmt: skip
        _check(call("/update_weights_from_disk", body), f"the weights {path}")
        return Served("", label=str(version))


def _check(answer: Any, what: str) -> None:
    if not isinstance(answer, dict) or answer.get("success") is not True:
        message = answer.get("message") or answer.get("error_message") if isinstance(answer, dict) else answer
        raise UserError(f"SGLang did not accept {what}: {str(message)[:300]}")
