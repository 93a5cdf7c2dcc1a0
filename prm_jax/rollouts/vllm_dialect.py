"""vLLM's server: completions with token ids, adapters at run time, weights reloaded from a directory."""

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
    same_number,
    token_ids,
)

_NO_IDS = "vLLM returns token ids from version 0.10.2 on (return_token_ids): use a newer one"


class VllmDialect:
    """See `Dialect`.

    Attributes:
      tempered: False for vLLM's default ``--logprobs-mode raw_logprobs``; True for ``processed_logprobs``.
    """

    name = "vllm"
    path = "/v1/completions"
    sends_partials = False

    def __init__(self, *, tempered: bool = False) -> None:
        self.tempered = tempered

    def info(self, call: Call) -> ServerInfo:
        """See `Dialect`."""
        models = field(call("/v1/models"), "data", list, "the server")
        context = models[0].get("max_model_len") if models else None
        return ServerInfo(
            tuple(field(one, "id", str, "the server") for one in models),
            context if isinstance(context, int) else None, description="vLLM",
        )  # fmt: skip

    def body(self, request: TokenRequest) -> dict[str, Any]:
        """See `Dialect`."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": request.adapter or request.model,
            "prompt": list(request.prompt),
            "n": 1,
            "max_tokens": request.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": request.seed,
            "return_token_ids": True,
            "add_special_tokens": False,
            "include_stop_str_in_output": True,
            "request_id": request.request_id,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logprobs:
            body["logprobs"] = 1
        return body

    def read(self, answer: Any, request: TokenRequest, where: str) -> TokenAnswer:
        """See `Dialect`."""
        choices = field(answer, "choices", list, where)
        if len(choices) != 1:
            raise UserError(f"{where} answered with {len(choices)} completions: expected 1")
        one = choices[0]
        if not isinstance(one, dict) or one.get("token_ids") is None:
            raise UserError(f'{where} sent no "token_ids": {_NO_IDS}')
        reason = one.get("finish_reason")
        if reason not in ("stop", "length"):
            given_up(f"finish_reason {reason!r}")
        tokens = token_ids(one["token_ids"], request, '"token_ids"', where)
        check_prompt(one.get("prompt_token_ids"), request, where)
        logp = None
        if request.logprobs:
            found = field(field(one, "logprobs", dict, where), "token_logprobs", list, where)
            same_number(tokens, found, where)
            logp = tuple(log_probability(x, token, where) for x, token in zip(found, tokens, strict=True))
        matched = one.get("stop_reason")
        end: Ended = "length" if reason == "length" else "stop" if isinstance(matched, str) else "eos"
        served = answer.get("model")
        return TokenAnswer(
            tokens, logp, end, field(one, "text", str, where), matched if end == "stop" else None,
            served if isinstance(served, str) else None,
        )  # fmt: skip

    def abort(self, call: Call, request_id: str) -> None:
        """Nothing: vLLM ends a request whose connection is closed."""

    def load_adapter(self, call: Call, name: str, path: str) -> Served:
        """See `Dialect`; needs ``--enable-lora`` and the environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""
        call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        return Served(name, name, label=name)

    def unload_adapter(self, call: Call, name: str) -> None:
        """See `Dialect`."""
        call("/v1/unload_lora_adapter", {"lora_name": name})

    def load_weights(self, call: Call, path: str, version: int) -> Served:
        """See `Dialect`; needs VLLM_SERVER_DEV_MODE=1, ``--enable-sleep-mode``, and a model started from this path.

        vLLM reloads from the path that it was started with, so `path` must be the same for every version.
        """
        call("/sleep?level=2", {})
        call("/wake_up?tags=weights", {})
        call("/collective_rpc", {"method": "reload_weights"})
        call("/wake_up?tags=kv_cache", {})
        call("/reset_prefix_cache", {})
        call("/update_weight_version", {"new_version": str(version)})
        found = call("/weight_info").get("weight_version")
        if str(found) != str(version):
            raise UserError(f"vLLM reports weight version {found!r} after loading version {version} from {path}")
        return Served(self._model(call))

    def _model(self, call: Call) -> str:
        return self.info(call).models[0]
