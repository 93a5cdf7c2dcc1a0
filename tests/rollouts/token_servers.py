"""Stand-ins for vLLM, SGLang and llama.cpp: the field names of their interfaces, and a model that any test can redo.

They write by a rule: the tokens of a response follow from the request's seed, each with log-probability -0.5.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from prm_jax import models
from prm_jax.data.carry import ALPHABET
from prm_jax.rollouts import LocalEngine, Request, SamplingOptions, sample_all
from tests.rollouts.completion_server import Answer, serving

TOKENIZER = models.CharTokenizer(ALPHABET)
LOGP = -0.5


def written(seed: int, count: int, stops: list[str], *, ends: bool = True) -> tuple[list[int], str, str | None]:
    """(ids, how the response ended, the stop string): digits until a stop string, an end token or `count` tokens."""
    draw = random.Random(seed)
    ids: list[int] = []
    text = ""
    while len(ids) < count:
        if ends and draw.random() < 0.1:
            return [*ids, TOKENIZER.eos_id], "eos", None
        text += draw.choice("0123456789;#")
        ids += TOKENIZER.encode(text[-1])
        for stop in stops:
            if text.endswith(stop):
                return ids, "stop", stop
    return ids, "length", None


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special=True)


class Fake:
    """What all stand-ins share.

    Attributes:
      faults: called with each request before it is answered; whatever it returns but None is the answer.
      change: called with each answer.
      posts: (path, body) of what was posted besides requests for responses.
    """

    path = ""

    def __init__(self) -> None:
        self.faults: Callable[[dict[str, Any], int], Any] = lambda body, number: None
        self.change: Callable[[Any], Any] = lambda answer: answer
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        self.version = "default"

    def page(self, path: str) -> Any:
        raise NotImplementedError

    def respond(self, body: dict[str, Any]) -> Any:
        raise NotImplementedError

    def other(self, path: str, body: dict[str, Any]) -> Any:
        return Answer(404, {"error": "not found"})

    def __call__(self, body: dict[str, Any], number: int) -> Any:
        path = body.pop("path")
        if path != self.path:
            self.posts.append((path, body))
            return self.other(path, body)
        self.asked.append(body)
        fault = self.faults(body, len(self.asked))
        if fault is not None:
            return None if fault == "hang up" else fault
        found = self.respond(body)
        return found if isinstance(found, Answer) else Answer(200, self.change(found))

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        with serving(self, self.page, port) as (url, _):
            yield url


class FakeVllm(Fake):
    path = "/v1/completions"

    def __init__(self) -> None:
        super().__init__()
        self.models = ["tiny"]

    def page(self, path: str) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": name, "owned_by": "vllm", "max_model_len": 64} for name in self.models]}
        return {"weight_version": self.version} if path == "/weight_info" else None

    def respond(self, body: dict[str, Any]) -> Any:
        if body["model"] not in self.models:
            return Answer(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        ids, end, word = written(body["seed"], body["max_tokens"], body.get("stop", []))
        choice = {
            "index": 0, "text": text_of(ids), "token_ids": ids, "prompt_token_ids": body["prompt"],
            "finish_reason": "length" if end == "length" else "stop", "stop_reason": word,
            "logprobs": {"tokens": [text_of([i]) for i in ids], "token_logprobs": [LOGP] * len(ids)},
        }  # fmt: skip
        return {"model": body["model"], "choices": [choice]}

    def other(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/load_lora_adapter":
            self.models.append(body["lora_name"])
        elif path == "/v1/unload_lora_adapter":
            self.models.remove(body["lora_name"])
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        return Answer(200, {})


class FakeSglang(Fake):
    path = "/generate"

    def __init__(self) -> None:
        super().__init__()
        self.adapters: list[str] = []
        self.slow: set[str] = set()
        self.slowly = False

    def page(self, path: str) -> Any:
        if path == "/model_info":
            return {"model_path": "/models/tiny", "is_generation": True, "weight_version": self.version}
        return None

    def respond(self, body: dict[str, Any]) -> Any:
        if body.get("lora_path") and body["lora_path"] not in self.adapters:
            return Answer(400, {"error": {"message": "unknown adapter"}})
        sampling = body["sampling_params"]
        ids, end, word = written(sampling["sampling_seed"], sampling["max_new_tokens"], sampling["stop"])
        finish = {"type": "length", "length": len(ids)} if end == "length" else {"type": "stop", "matched": word or 1}
        if self.slowly:
            self.slow.add(body["rid"])
            while body["rid"] in self.slow:
                time.sleep(0.01)
            ids, finish = ids[:1], {"type": "abort", "message": "aborted"}
        meta = {
            "id": body["rid"], "finish_reason": finish, "prompt_tokens": len(body["input_ids"]),
            "weight_version": self.version, "output_token_logprobs": [[LOGP, i, None] for i in ids],
        }  # fmt: skip
        return {"text": text_of(ids), "output_ids": ids, "meta_info": meta}

    def other(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/update_weights_from_disk":
            self.version = body["weight_version"]
        elif path == "/load_lora_adapter":
            self.adapters.append(body["lora_name"])
        elif path == "/abort_request":
            self.slow.discard(body["rid"])
        return Answer(200, {"success": True, "message": "ok"})


class FakeLlama(Fake):
    path = "/completion"

    def __init__(self, file: str = "/models/tiny.gguf") -> None:
        super().__init__()
        self.file = file

    def page(self, path: str) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": self.file, "owned_by": "llamacpp", "meta": {"n_vocab": TOKENIZER.vocab_size}}]}
        if path == "/props":
            return {"default_generation_settings": {"n_ctx": 64}, "model_path": self.file, "model_ftype": "F16"}
        return {} if path == "/health" else None

    def respond(self, body: dict[str, Any]) -> Any:
        ids, end, word = written(body["seed"], body["n_predict"], body["stop"])
        if "logit_bias" in body:
            ids, end, word = [body["logit_bias"][0][0]], "length", None
        known = ids[: len(ids) - len(word or "")]
        kind = {"length": "limit", "stop": "word", "eos": "eos"}[end]
        return {
            "model": self.file, "tokens": ids, "content": text_of(known), "stop_type": kind,
            "stopping_word": word or "",
            "completion_probabilities": [{"id": i, "logprob": LOGP - len(ids) % 2 / 4} for i in known],
        }  # fmt: skip


class ModelSglang(FakeSglang):
    """Runs a model of this package: it reads the weights that it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        self.engines: dict[float, Any] = {}
        self.model: Any = None
        self.lock = threading.Lock()

    def use(self, config: Any, params: Any) -> None:
        self.model, self.engines = (config, params), {}

    def load(self, path: Any) -> None:
        self.use(*models.load_weights(path))

    def respond(self, body: dict[str, Any]) -> Any:
        sampling, prompt = body["sampling_params"], tuple(body["input_ids"])
        stops = tuple(sampling["stop"])
        with self.lock:
            temperature = sampling["temperature"]
            if temperature not in self.engines:
                self.engines[temperature] = LocalEngine(
                    *self.model, key=jax.random.key(0), sampling=SamplingOptions(temperature), stops=(stops,),
                    tokenizer=TOKENIZER,
                )  # fmt: skip
            seed = sampling["sampling_seed"] % (1 << 31)
            request = Request(prompt, seed, 0, sampling["max_new_tokens"])
            (one,) = sample_all(self.engines[temperature], [request])
        ids = one.tokens.tolist()
        finish = {"type": "length"} if one.end == "length" else {"type": "stop", "matched": 1}
        if one.end == "stop":
            finish["matched"] = stops[one.stop_index]
        meta = {
            "id": body["rid"], "finish_reason": finish, "prompt_tokens": len(prompt), "weight_version": self.version,
            "output_token_logprobs": [[x, i, None] for x, i in zip(one.logp.tolist(), ids, strict=True)],
        }  # fmt: skip
        return {"text": text_of(ids), "output_ids": ids, "meta_info": meta}

    def other(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/update_weights_from_disk" and not self.frozen:
            self.load(body["model_path"])
        if path == "/load_lora_adapter" and body["lora_name"] in self.adapters:
            return Answer(400, {"success": False, "error_message": "already loaded"})
        if path == "/unload_lora_adapter":
            self.adapters.remove(body["lora_name"])
        return super().other(path, body)


LLAMAS: list[tuple[FakeLlama, str]] = []
"""The stand-in that `restart_llama` starts again, and its address."""


def restart_llama(path: str) -> str:
    fake, url = LLAMAS[0]
    fake.file = path
    return url
