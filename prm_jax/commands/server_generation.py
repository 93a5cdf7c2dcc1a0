"""What ``prm-jax generate`` does with a server in place of a model in this process."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prm_jax.errors import UserError

if TYPE_CHECKING:
    from prm_jax.models import Samples, Tokenizer


def server_sampler(
    options: Any, path: pathlib.Path, tokenizer: "Tokenizer"
) -> "Callable[[Sequence[Any], int], Samples]":
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


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The part of a text before the first stop string; servers return the string too."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
