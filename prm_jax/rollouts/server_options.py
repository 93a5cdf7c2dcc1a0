"""Options of a server that a training run samples with."""

from dataclasses import dataclass
from typing import Annotated, Literal

from prm_jax.option_ranges import at_least, within


@dataclass(frozen=True)
class ServerOptions:
    """How the server of --rollout.engine gets the policy's weights, and how that is checked."""

    model: str = ""
    """Name of the model on the server; empty: the only one that it serves."""
    folder: str = ""
    """Folder for the policy's weights, which the server must see too."""
    folder_on_server: str = ""
    """Path of that folder on the server; empty: the same."""
    weights: Literal["auto", "adapter", "full", "restart"] = "auto"
    """What is written there. adapter: LoRA adapters (with --model.lora-rank); full: whole weights, which the running
    server reads; restart: a GGUF file that the server is restarted with; auto: restart with --rollout.server.restart,
    otherwise adapter with --model.lora-rank, otherwise full."""
    restart: str = ""
    """How a llama.cpp server is restarted: a command with {model} in place of the file, such as "llama-server -m
    {model} --port 8080"; or package.module:function or file.py:function, from the file's path to the address."""
    like: str = ""
    """GGUF file of the same model, from which the files for the server take the tokenizer; empty: --model.path."""
    precision: Literal["float32", "bfloat16", "quantized"] = "bfloat16"
    """Precision of the server's weights: of the files, and how far its log-probabilities may be from the policy's."""
    probe: Annotated[int, at_least(0)] = 8
    """Prompts whose responses are scored by the trainer after each update, to find a server with other weights; 0:
    none."""
    start_seconds: Annotated[float, within(0, 86400, low_open=True)] = 300.0
    """Seconds until a restarted server must answer."""


def is_url(engine: str) -> bool:
    """Whether the name of an engine is the address of a server."""
    return engine.startswith(("http://", "https://"))
