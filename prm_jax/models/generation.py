"""Generation: G samples of each prompt from one prefill, with one compilation per shape.

The whole generation is a single jitted call.  It stops when every row has met an end-of-text token, a stop
sequence or a stop string, all of which are recognised on the device.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prm_jax.errors import UserError
from prm_jax.models import decode, stopping
from prm_jax.models.config import ModelConfig
from prm_jax.models.decode_loop import ResponseSpec, write_responses
from prm_jax.models.prefixes import PrefixStore
from prm_jax.models.responses import Samples, drop_stop, pad_right
from prm_jax.models.sampling import make_sampling
from prm_jax.models.sharding import BATCH
from prm_jax.models.tokenizer import Tokenizer, check_fits
from prm_jax.models.transformer import Params

Array = jax.Array
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]



@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """The less common options of ``generate``.

    Attributes:
      tokenizer: encodes prompts and finds stop strings; needed for text, chat messages and stop strings.
      eos_ids: tokens that end a response; None for the tokenizer's.
      min_p: after ``top_k`` and ``top_p``, keep tokens at least this many times as probable as the most
        probable one; 0 keeps all.
      keep_stop: whether the tokens of a stop string or stop sequence stay in the response.  False removes those
        that begin inside it from mask, tokens and log-probabilities.
      prompt_ids: P integers >= 0 that seed the prompts' randomness; None for 0 .. P-1.  A prompt gets the same
        samples in any batch in which it has the same id.
      sharding: sharding of the rows (the first entry of its spec is used).  None splits them over the axes
        ``sharding.BATCH`` of the parameters' mesh, if those divide the number of prompts.
      reuse: keeps keys and values, so that later prompts which extend these prompts and responses are not
        prefilled again; for parameters on one device.  Samples are the same up to float rounding.
    """

    tokenizer: Tokenizer | None = None
    eos_ids: Sequence[int] | None = None
    min_p: float = 0.0
    keep_stop: bool = True
    prompt_ids: Sequence[int] | None = None
    sharding: NamedSharding | None = None
    reuse: PrefixStore | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptArrays:
    """P tokenized prompts.

    Attributes:
      tokens: [P, S] i32, right-padded with any valid token.
      lengths: [P] i32 in [0, S]; a prompt of length 0 is padding, whose rows stay empty.
      ids: [P] i32 >= 0, see ``DecodeOptions.prompt_ids``.
    """

    tokens: Any
    lengths: Any
    ids: Any


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Prompt],
    key: Array,
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str | Sequence[int]] = (),
    options: DecodeOptions = DecodeOptions(),
) -> Samples:
    """Samples responses to prompts.

    A row's tokens depend on the key, its prompt, its prompt's id and its index among the prompt's samples,
    not on the other rows.  Compiles once for each (config, number of prompts, bucket of the longest prompt,
    samples_per_prompt, max_new_tokens, enabled truncations, size of the stop automata).

    Args:
      config: the model.
      params: its parameters; LoRA adapters joined to them are applied.
      prompts: P prompts, each token ids, text, or chat messages (the last two need ``options.tokenizer``).
      key: typed PRNG key, consumed.
      samples_per_prompt: G >= 1, rows that share a prompt's prefill.
      max_new_tokens: R >= 1.
      temperature: >= 0; 0 is greedy decoding.
      top_k: keep the k most probable tokens; 0 keeps all.
      top_p: then keep the smallest set with this share of the mass; 1 keeps all.
      stop: strings (which need ``options.tokenizer``) and token sequences that end a response.
      options: everything else.

    Returns:
      ``Samples`` of B = P * G rows and R columns.

    Raises:
      UserError: no prompts, an empty prompt, a prompt that does not fit into the context together with
        ``max_new_tokens``, a token outside the vocabulary, text without a tokenizer, or an option outside its
        range.
    """
    if samples_per_prompt < 1:
        raise UserError(f"samples_per_prompt is {samples_per_prompt}; expected at least 1")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    tokenizer, eos_ids = options.tokenizer, options.eos_ids
    if tokenizer is not None:
        check_fits(tokenizer, config)
        eos_ids = tokenizer.eos_ids if eos_ids is None else eos_ids
    strings, sequences = stopping.check_stop(stop, eos_ids or (), config.vocab_size)
    spec = ResponseSpec(
        sampling=make_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=options.min_p),
        tables=stopping.stop_tables(strings, sequences, config.vocab_size, tokenizer),
        samples=samples_per_prompt,
        steps=max_new_tokens,
    )
    encoded = [_encode(i, prompt, tokenizer) for i, prompt in enumerate(prompts)]
    samples = _generate(config, params, encoded, key, spec, options)
    return samples if options.keep_stop else drop_stop(samples, strings, sequences, tokenizer)


@functools.partial(jax.jit, static_argnames=("config", "repack"))
def generate_arrays(
    config: ModelConfig,
    params: Params,
    prompts: PromptArrays,
    key: Array,
    spec: ResponseSpec,
    *,
    repack: bool = False,
) -> Samples:
    """The jitted core of ``generate``; may be called inside another jitted function.

    Args:
      config: the model.
      params: its parameters.
      prompts: P prompts.
      key: typed PRNG key, consumed.
      spec: what to sample.
      repack: see ``decode.prepare``.

    Returns:
      ``Samples`` of P * G rows and R columns.
    """
    packed = decode.prepare(config, params, repack=repack)
    hidden, prefix = decode.prefill(config, params, prompts.tokens, prompts.lengths)
    return write_responses(config, packed, hidden, prefix, prompts.ids, key, spec)[0]


def _generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: Array,
    spec: ResponseSpec,
    options: DecodeOptions,
) -> Samples:
    """``generate`` on token ids."""
    _check_prompts(config, prompts, spec.steps)
    ids = _check_prompt_ids(options.prompt_ids, len(prompts))
    columns = bucket(max(map(len, prompts)), config.context)
    repack = on_cpu(params)
    if options.reuse is not None:
        return options.reuse.generate(config, params, prompts, columns, ids, key, spec, repack=repack)
    tokens, lengths = pad_right(prompts, columns)
    arrays = PromptArrays(*_place((tokens, lengths, ids), params, options.sharding))
    return generate_arrays(config, params, arrays, key, spec, repack=repack)


def _encode(index: int, prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    messages = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if not isinstance(prompt, str) and not messages:
        return [int(token) for token in prompt]  # type: ignore[arg-type]
    if tokenizer is None:
        kind = "chat messages" if messages else "text"
        raise UserError(f"prompt {index} is {kind}, which needs a tokenizer: options=DecodeOptions(tokenizer=...)")
    return tokenizer.chat(prompt) if messages else tokenizer.encode(prompt)  # type: ignore[arg-type]


def _check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if not prompts:
        raise UserError("there are no prompts; expected at least one")
    context, vocab = config.context, config.vocab_size
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {index} is empty; give at least one token, for example <bos>")
        if len(prompt) + max_new_tokens > context:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens, which with max_new_tokens={max_new_tokens} "
                f"exceeds the model's context of {context} tokens: shorten the prompt or the response"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            found = min(prompt) if min(prompt) < 0 else max(prompt)
            raise UserError(f"prompt {index} contains token {found}, but the vocabulary has tokens 0 to {vocab - 1}")


def _check_prompt_ids(prompt_ids: Sequence[int] | None, count: int) -> np.ndarray:
    ids = np.arange(count) if prompt_ids is None else np.asarray(prompt_ids)
    if ids.shape != (count,) or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise UserError(f"prompt_ids must be {count} integers >= 0, one per prompt")
    return ids.astype(np.int32)


def bucket(longest: int, context: int) -> int:
    """The padded length of prompts: 8, 12, 16, 24, 32, 48, ..., at most `context`, so that few lengths are compiled."""
    size = 8
    while size < longest:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return max(longest, min(size, context))


def _place(arrays: tuple[np.ndarray, ...], params: Params, sharding: NamedSharding | None) -> tuple[Array, ...]:
    """Places the prompts' arrays, with rows split over the data axes of the parameters' mesh."""
    count = arrays[0].shape[0]
    if sharding is None:
        placed = getattr(jax.tree.leaves(params)[0], "sharding", None)
        if not isinstance(placed, NamedSharding):
            return tuple(jnp.asarray(array) for array in arrays)
        mesh = placed.mesh
        axes = tuple(axis for axis in BATCH if mesh.shape.get(axis, 1) > 1)
        fits = count % int(np.prod([mesh.shape[axis] for axis in axes])) == 0
        sharding = NamedSharding(mesh, PartitionSpec(axes) if axes and fits else PartitionSpec())
    spec = PartitionSpec(*sharding.spec[:1])
    layout = NamedSharding(sharding.mesh, spec)
    return tuple(
        jax.make_array_from_callback(a.shape, layout, functools.partial(np.asarray(a).__getitem__)) for a in arrays
    )


def on_cpu(params: Params) -> bool:
    """Whether the parameters are on a CPU."""
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.devices() if isinstance(leaf, Array) else jax.devices()[:1]
    return next(iter(devices)).platform == "cpu"
