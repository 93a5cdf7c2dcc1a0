"""``prm-jax generate``: prompts in, responses and tokens per second out."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from prm_jax.commands.generate_options import Options
from prm_jax.commands.samplers import before_stop, local_sampler, server_sampler
from prm_jax.errors import UserError
from prm_jax.option_ranges import check_ranges
from prm_jax.runs import processes

Prompt = str | Sequence[Any]
_Text = tuple[str, float, int]
"""A response, its log-probability and its number of tokens."""


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
