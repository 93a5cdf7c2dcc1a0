"""The options of ``prm-jax generate``."""

import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.option_ranges import at_least, within
from prm_jax.rollouts.hint_options import HintOptions
from prm_jax.rollouts.sampling_options import Connection
from prm_jax.runs.distributed_options import DistributedOptions


@dataclass(frozen=True)
class Options:
    """Sample responses from a model.

    Prompts come from the command line, a data file, or standard input. Responses go to standard output, tokens per
    second to standard error.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Hugging Face directory, GGUF file, name on the hub (org/name), or "smollm2"."""
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Prompts; without any, and without --input, standard input is one prompt."""
    input: pathlib.Path | None = None
    """Data file (JSON lines, CSV, Parquet ...) whose rows have "prompt" (a text) or "messages" (a chat)."""
    chat: bool = False
    """Wrap texts into the model's chat template, as the user's message."""
    samples: Annotated[int, at_least(1)] = 1
    """Responses per prompt."""
    max_new_tokens: Annotated[int, at_least(1)] = 128
    """Maximum length of a response, in tokens."""
    temperature: Annotated[float, at_least(0)] = 1.0
    """Sampling temperature; 0 is greedy decoding."""
    top_k: Annotated[int, at_least(0)] = 0
    """Sample among the k most probable tokens; 0: all."""
    top_p: Annotated[float, within(0, 1, low_open=True)] = 1.0
    """Sample from the smallest set of tokens with this share of the probability mass."""
    min_p: Annotated[float, within(0, 1)] = 0.0
    """Leave out tokens less probable than this times the most probable one."""
    stop: tuple[str, ...] = ()
    """Strings that end a response."""
    seed: int = 0
    """Seed of the sampling."""
    batch_size: Annotated[int, at_least(1)] = 16
    """Prompts per batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of parameters and computation."""
    quantize: Literal["none", "keep", "int8", "int4", "int2"] = "none"
    """Keep weights in so many bits, or (keep) exactly as a GGUF file stores them."""
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    """How they are quantised."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Devices over which the model and the prompts are split."""
    json: bool = False
    """Write JSON lines with prompt, response, log-probability and token count."""
    hint: HintOptions = field(default_factory=HintOptions)
    """Problems of a task, answered with and without a hint; writes JSON lines."""
    server: str = ""
    """Address of a server that runs the model, as in prm-jax search; only the tokenizer is then read here."""
    connection: Connection = field(default_factory=Connection)
    """How to talk to that server."""
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""
