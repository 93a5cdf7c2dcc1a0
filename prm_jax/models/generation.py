"""Generation: G samples of each prompt from one prefill, one compilation for each shape.

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
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from prm_jax.errors import UserError
from prm_jax.models import decode, stopping
from prm_jax.models.config import ModelConfig
from prm_jax.models.prefixes import PrefixStore
from prm_jax.models.responses import Samples, drop_stop, pad_right
from prm_jax.models.sampling import Sampling, make_sampling, row_uniforms, sample
from prm_jax.models.tokenizer import Tokenizer, check_fits
from prm_jax.models.transformer import Params

Array = jax.Array
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]

_BATCH_AXES = ("data", "fsdp")


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
    min_p: float = 0.0,
    stop: str | Sequence[str | Sequence[int]] = (),
    eos_ids: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    keep_stop: bool = True,
    prompt_ids: Sequence[int] | None = None,
    sharding: NamedSharding | None = None,
    reuse: PrefixStore | None = None,
) -> Samples:
    """Samples responses to prompts.

    A row's tokens depend on the key, its prompt, its prompt's id and its index among the prompt's samples,
    not on the other rows.  Compiles once for each (config, number of prompts, bucket of the longest prompt,
    samples_per_prompt, max_new_tokens, which truncations are on, size of the stop automata), and never again
    for other values.

    Args:
      config: the model.
      params: its parameters; adapters beside kernels are used.
      prompts: P prompts, each token ids, a text, or chat messages (the last two need a tokenizer).
      key: typed PRNG key, consumed.
      samples_per_prompt: G >= 1, rows that share a prompt's prefill.
      max_new_tokens: R >= 1.
      temperature: >= 0; 0 is greedy decoding.
      top_k: keep the k most probable tokens; 0 keeps all.
      top_p: then keep the smallest set with this share of the mass; 1 keeps all.
      min_p: then keep tokens this many times as probable as the most probable one; 0 keeps all.
      stop: strings (which need a tokenizer) and token sequences that end a response once it contains them.
      eos_ids: tokens that end a response; the tokenizer's when None.
      tokenizer: encodes prompts and finds stop strings.
      keep_stop: whether the tokens of a stop string or stop sequence stay in the response.  False takes away
        those that begin inside it, from the mask, the tokens and the log-probabilities.
      prompt_ids: P numbers >= 0 that tell the prompts' randomness apart; 0 .. P-1 when None.  A prompt keeps
        its samples in any batch in which it keeps its number.
      sharding: how the rows lie on a mesh (its spec's first entry counts).  When None, over the axes "data"
        and "fsdp" of the mesh on which the parameters lie, if they divide the prompts.
      reuse: keeps keys and values, so that later prompts which begin with these prompts and responses are not read
        again; for parameters on one device.  The samples are the same but for float rounding.

    Returns:
      `Samples` of B = P * G rows and R columns.

    Raises:
      UserError: no prompts, an empty prompt, a prompt that does not fit into the context together with
        `max_new_tokens`, a token outside the vocabulary, text without a tokenizer, or an option out of its
        range.
    """
    if samples_per_prompt < 1:
        raise UserError(f"samples_per_prompt is {samples_per_prompt}: give at least 1")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: give at least 1")
    if tokenizer is not None:
        check_fits(tokenizer, config)
        eos_ids = tokenizer.eos_ids if eos_ids is None else eos_ids
    sampling = make_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    strings, sequences = stopping.check_stop(stop, eos_ids or (), config.vocab_size)
    tables = stopping.stop_tables(strings, sequences, config.vocab_size, tokenizer)
    encoded = [_encode(i, prompt, tokenizer) for i, prompt in enumerate(prompts)]
    _check_prompts(config, encoded, max_new_tokens)
    ids = _check_prompt_ids(prompt_ids, len(encoded))
    columns = _bucket(max(map(len, encoded)), config.max_position_embeddings)
    static: Any = {"samples": samples_per_prompt, "steps": max_new_tokens, "repack": _on_cpu(params)}
    if reuse is not None:
        samples = reuse.generate(config, params, encoded, columns, ids, key, sampling, tables, **static)
    else:
        tokens, lengths = pad_right(encoded, columns)
        arrays = _place((tokens, lengths, ids), params, sharding)
        samples = generate_arrays(config, params, *arrays, key, sampling, tables, **static)
    return samples if keep_stop else drop_stop(samples, strings, sequences, tokenizer)


@functools.partial(jax.jit, static_argnames=("config", "samples", "steps", "repack"))
def generate_arrays(
    config: ModelConfig,
    params: Params,
    prompts: Array,
    lengths: Array,
    prompt_ids: Array,
    key: Array,
    sampling: Sampling,
    tables: tuple[Array, ...],
    *,
    samples: int,
    steps: int,
    repack: bool = False,
) -> Samples:
    """The jitted core of `generate`, on arrays; may be called inside another jitted function.

    Args:
      config: the model.
      params: its parameters.
      prompts: [P, S] i32, right-padded with any valid token.
      lengths: [P] i32 in [0, S]; a prompt of length 0 is padding, whose rows stay empty.
      prompt_ids: [P] i32 >= 0, see `generate`.
      key: typed PRNG key, consumed.
      sampling: from `make_sampling`.
      tables: stop automata, each [states, V] i32 as `stopping.token_table`; a row ends when any is complete.
      samples: G.
      steps: R.
      repack: see `decode.prepare`.

    Returns:
      `Samples` of P * G rows and R columns.
    """
    packed = decode.prepare(config, params, repack=repack)
    hidden, prefix = decode.prefill(config, params, prompts, lengths)
    return write_responses(
        config, packed, hidden, prefix, prompt_ids, key, sampling, tables, samples=samples, steps=steps
    )[0]


def write_responses(
    config: ModelConfig,
    packed: Params,
    hidden: Array,
    prefix: decode.Prefix,
    prompt_ids: Array,
    key: Array,
    sampling: Sampling,
    tables: tuple[Array, ...],
    *,
    samples: int,
    steps: int,
) -> tuple[Samples, tuple[decode.KeyValues, ...]]:
    """Writes responses to prompts whose keys and values are there; traced.

    Args:
      config: the model.
      packed: its parameters, from `decode.prepare`.
      hidden: [D, P], of the last token of each prompt.
      prefix: of the P prompts; one of length 0 is padding, whose rows stay empty.
      prompt_ids: see `generate_arrays`.
      key: see `generate_arrays`.
      sampling: see `generate_arrays`.
      tables: see `generate_arrays`.
      samples: G.
      steps: R.

    Returns:
      (`Samples` of P * G rows and R columns; keys and values of the responses, those of a row's last token not
      always among them).
    """
    rows = hidden.shape[1] * samples
    uniforms = row_uniforms(key, prompt_ids, samples=samples, steps=steps)
    logits = jnp.repeat(decode.next_logits(config, packed, hidden), samples, axis=0)
    empty = jnp.repeat(prefix.lengths == 0, samples)
    blank = _Written(
        tokens=jnp.zeros((steps, rows), jnp.int32),
        mask=jnp.zeros((steps, rows), bool),
        logp=jnp.zeros((steps, rows), jnp.float32),
        states=tuple(jnp.zeros((rows,), jnp.int32) for _ in tables),
        done=empty,
    )

    def write(written: _Written, logits: Array, step: Array) -> tuple[_Written, Array]:
        uniform = lax.dynamic_index_in_dim(uniforms, step, keepdims=False)
        token, logp = sample(logits, uniform, sampling)
        return _write(written, tables, step, token, logp), token

    def more(carry: Any) -> Array:
        written, _, _, step = carry
        return (step < steps) & ~jnp.all(written.done)

    def body(carry: Any) -> Any:
        written, token, suffix, step = carry
        hidden, suffix = decode.decode_step(config, packed, prefix, suffix, token, step - 1)
        written, token = write(written, decode.next_logits(config, packed, hidden), step)
        return written, token, suffix, step + 1

    written, token = write(blank, logits, jnp.int32(0))
    suffix = decode.init_suffix(config, rows, steps)
    written, _, suffix, _ = lax.while_loop(more, body, (written, token, suffix, jnp.int32(1)))
    return Samples(written.tokens.T, written.mask.T, written.logp.T, written.done & ~empty), suffix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Written:
    """What the loop has written: [R, B] arrays, step-major so that each step writes one contiguous row."""

    tokens: Array
    mask: Array
    logp: Array
    states: tuple[Array, ...]  # [B] i32 each: where each stop automaton stands
    done: Array  # [B] bool


def _write(written: _Written, tables: tuple[Array, ...], step: Array, token: Array, logp: Array) -> _Written:
    live = ~written.done
    update = functools.partial(lax.dynamic_update_index_in_dim, index=step, axis=0)
    states = tuple(table[state, token] for table, state in zip(tables, written.states, strict=True))
    done = written.done
    for table, state in zip(tables, states, strict=True):
        done = done | (live & (state == table.shape[0] - 1))
    return _Written(
        tokens=update(written.tokens, jnp.where(live, token, 0)),
        mask=update(written.mask, live),
        logp=update(written.logp, jnp.where(live, logp, 0.0)),
        states=states,
        done=done,
    )


def _encode(index: int, prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    messages = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if not isinstance(prompt, str) and not messages:
        return [int(token) for token in prompt]  # type: ignore[arg-type]
    if tokenizer is None:
        kind = "chat messages" if messages else "text"
        raise UserError(f"prompt {index} is {kind}: give a tokenizer, or give token ids")
    return tokenizer.chat(prompt) if messages else tokenizer.encode(prompt)  # type: ignore[arg-type]


def _check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if not prompts:
        raise UserError("there are no prompts: give at least one")
    context, vocab = config.max_position_embeddings, config.vocab_size
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {index} is empty: give at least one token, such as the beginning-of-text token")
        if len(prompt) + max_new_tokens > context:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens, which with max_new_tokens={max_new_tokens} "
                f"exceeds the model's context of {context} tokens: shorten the prompt or the response"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            found = min(prompt) if min(prompt) < 0 else max(prompt)
            raise UserError(f"prompt {index} holds token {found}, but the vocabulary has tokens 0 to {vocab - 1}")


def _check_prompt_ids(prompt_ids: Sequence[int] | None, count: int) -> np.ndarray:
    ids = np.arange(count) if prompt_ids is None else np.asarray(prompt_ids)
    if ids.shape != (count,) or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise UserError(f"prompt_ids must be {count} whole numbers >= 0, one a prompt")
    return ids.astype(np.int32)


def _bucket(longest: int, context: int) -> int:
    """The padded length of prompts: 8, 12, 16, 24, 32, 48, ... so that few lengths are ever compiled."""
    size = 8
    while size < longest:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return max(longest, min(size, context))


def _place(arrays: tuple[np.ndarray, ...], params: Params, sharding: NamedSharding | None) -> tuple[Array, ...]:
    """The prompts' arrays on the devices, rows along the data axes of the mesh on which the parameters
    lie.
    """
    count = arrays[0].shape[0]
    if sharding is None:
        placed = getattr(jax.tree.leaves(params)[0], "sharding", None)
        if not isinstance(placed, NamedSharding):
            return tuple(jnp.asarray(array) for array in arrays)
        mesh = placed.mesh
        axes = tuple(axis for axis in _BATCH_AXES if mesh.shape.get(axis, 1) > 1)
        fits = count % int(np.prod([mesh.shape[axis] for axis in axes])) == 0
        sharding = NamedSharding(mesh, PartitionSpec(axes) if axes and fits else PartitionSpec())
    spec = PartitionSpec(*sharding.spec[:1])
    layout = NamedSharding(sharding.mesh, spec)
    return tuple(
        jax.make_array_from_callback(a.shape, layout, functools.partial(np.asarray(a).__getitem__)) for a in arrays
    )


def _on_cpu(params: Params) -> bool:
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.devices() if isinstance(leaf, Array) else jax.devices()[:1]
    return next(iter(devices)).platform == "cpu"
