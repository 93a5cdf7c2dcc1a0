"""Where ``prm-jax generate`` takes its samples from: a model in this process, or a server."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prm_jax.commands.devices import mesh_of
from prm_jax.errors import UserError
from prm_jax.runs import processes

if TYPE_CHECKING:
    from prm_jax.models import Samples, Tokenizer

    Sample = Callable[[Sequence[Any], int], Samples]


def server_sampler(options: Any, path: pathlib.Path, tokenizer: "Tokenizer") -> "Sample":
    """Connects to the server of ``--server``.

    Args:
      options: of ``prm-jax generate``.
      path: of the model, of which only the tokenizer is needed.
      tokenizer: of the model.

    Returns:
      Samples responses to prompts, of which the first has the given number in the whole call.

    Raises:
      UserError: no such server, or an option that it does not have.
    """
    from prm_jax.rollouts import SamplingOptions, engine_on_server, generate_with

    if options.min_p:
        raise UserError("--min-p is not available with --server: leave it out, or use --top-p")
    sampling = SamplingOptions(options.temperature, options.top_k, options.top_p)
    name = options.connection.model or options.model
    engine = engine_on_server(
        options.server, name, tokenizer, connection=dataclasses.replace(options.connection, model=name),
        sampling=sampling, seed=options.seed % (1 << 32), stops=(options.stop,),
    )  # fmt: skip

    def encode(prompt: Any) -> list[int]:
        if isinstance(prompt, str) and not options.chat:
            return tokenizer.encode(prompt)
        messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return tokenizer.chat(messages)

    def sample(batch: Sequence[Any], start: int) -> "Samples":
        prompts = [encode(prompt) for prompt in batch]
        return generate_with(
            engine, prompts, samples_per_prompt=options.samples, max_new_tokens=options.max_new_tokens,
            prompt_ids=range(start, start + len(prompts)),
        )  # fmt: skip

    return sample


def local_sampler(options: Any, path: pathlib.Path, tokenizer: "Tokenizer") -> "Sample":
    """Loads the model; arguments and result as those of `server_sampler`.

    Raises:
      UserError: weights that cannot be read, or a mesh that does not fit.
    """
    import jax

    from prm_jax.models import DecodeOptions, generate, load_weights
    from prm_jax.models.quantization import quantize_as

    keep = options.quantize == "keep"
    config, params = load_weights(path, dtype=options.dtype, mesh=mesh_of(options.mesh), keep_quantized=keep)
    params = quantize_as(config, params, options.quantize, options.quantization, prefix="--")
    config = dataclasses.replace(config, compute_dtype=options.dtype)
    key = jax.random.key(options.seed)

    def sample(batch: Sequence[Any], start: int) -> "Samples":
        ready = [[{"role": "user", "content": p}] if options.chat and isinstance(p, str) else p for p in batch]
        # A smaller last batch would be compiled again: it is filled with copies, which are not shown.
        size = -(-options.batch_size // processes.count())
        ready += [ready[-1]] * (size - len(batch) if start >= options.batch_size else 0)
        decode = DecodeOptions(
            tokenizer=tokenizer, min_p=options.min_p, keep_stop=False, prompt_ids=range(start, start + len(ready))
        )
        return generate(
            config, params, ready, key, samples_per_prompt=options.samples, max_new_tokens=options.max_new_tokens,
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, stop=options.stop,
            options=decode,
        )  # fmt: skip

    return sample


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The part of a text before the first stop string; servers return the string too."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
