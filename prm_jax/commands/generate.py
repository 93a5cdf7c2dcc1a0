"""``prm-jax generate``: prompts in, responses and tokens per second out."""

import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from prm_jax.commands.samplers import before_stop, local_sampler, server_sampler
from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.option_ranges import at_least, check_ranges, within
from prm_jax.rollouts.hint_options import HintOptions
from prm_jax.rollouts.sampling_options import Connection
from prm_jax.runs import processes
from prm_jax.runs.distributed_options import DistributedOptions

Prompt = str | Sequence[Any]
_Text = tuple[str, float, int]
"""A response, its log-probability and its number of tokens."""


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


def run(options: Options) -> None:
    """Generates batch by batch, writing as it goes."""
    from prm_jax.models import Tokenizer, find_model

    problems = check_ranges(options)
    if problems:
        raise UserError("\n".join(problems))
    if options.hint.text:
        if processes.count() > 1:
            raise UserError("--hint.text works in one process: start one, or divide the problems by hand")
        from prm_jax.commands.hinting import run_hints

        return run_hints(options)
    prompts = processes.broadcast_from_first(list(_prompts(options)) if processes.is_first() else [], name="prompts")
    path = find_model(options.model)
    tokenizer = Tokenizer.load(path)
    sample = (server_sampler if options.server else local_sampler)(options, path, tokenizer)
    tokens, seconds = 0, 0.0
    for number, start in enumerate(range(0, len(prompts), options.batch_size)):
        batch = prompts[start : start + options.batch_size]
        begun = time.monotonic()
        own = processes.share(len(batch))
        texts: list[_Text] = []
        if own.start < own.stop:
            samples = sample(batch[own], start + own.start)
            texts = _texts(tokenizer, samples, (own.stop - own.start) * options.samples)
        texts = [text for part in processes.gather(texts, name="responses") for text in part]
        written = sum(tokens for _, _, tokens in texts)
        _write(options, batch, texts)
        if number or len(prompts) <= options.batch_size:  # the first of several batches holds the compilation
            tokens, seconds = tokens + written, seconds + time.monotonic() - begun
    if seconds and processes.is_first():
        note = ", compilation included" if len(prompts) <= options.batch_size and not options.server else ""
        print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s{note}", file=sys.stderr)


def _texts(tokenizer: Any, samples: Any, rows: int) -> list[_Text]:
    """The first rows as text."""
    import numpy as np

    tokens, mask, logp = (np.asarray(x) for x in (samples.tokens, samples.mask, samples.logp))
    return [
        (
            tokenizer.decode(tokens[row][mask[row]].tolist(), skip_special=True),
            float(logp[row][mask[row]].sum()),
            int(mask[row].sum()),
        )
        for row in range(rows)
    ]


def _write(options: Options, batch: Sequence[Prompt], texts: Sequence[_Text]) -> None:
    many = len(batch) * options.samples > 1
    for row, (text, logp, tokens) in enumerate(texts):
        text = before_stop(text, options.stop)
        if options.json:
            record = {"prompt": batch[row // options.samples], "response": text, "logp": logp, "tokens": tokens}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(text + ("\n---" if many else ""), flush=True)


def _prompts(options: Options) -> Iterator[Prompt]:
    if options.prompt and options.input:
        raise UserError("prompts come from the command line or from --input, not from both: leave one of them out")
    if options.prompt:
        yield from options.prompt
    elif options.input:
        from prm_jax.data.prompts import read_prompts

        yield from read_prompts(options.input)
    else:
        text = sys.stdin.read().rstrip("\n")
        if not text:
            raise UserError("no prompt: give one on the command line or on standard input, or a file with --input")
        yield text
