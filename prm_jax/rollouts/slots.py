"""Decoding in a fixed number of slots: what a slot holds, and the compiled programs that fill and advance slots."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from prm_jax.models import ModelConfig, decode
from prm_jax.models.decode import KeyValues
from prm_jax.models.sampling import Sampling, sample
from prm_jax.models.transformer import Params

Array = jax.Array
Tables = tuple[tuple[Array, ...], ...]
"""For each stop set its automata [states, V]; see ``models.stopping``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """B slots of C columns.

    Attributes:
      layers: keys and values of each layer, N = B, S = C.
      hidden: [D, B], of the last token of each slot: it predicts the next one.
      filled: [B] i32, columns in use.
      step: [B] i32, tokens of the response so far.
      limit: [B] i32, maximum length of the response.
      stop: [B] i32, index of the stop set.
      row_key: [B] typed keys, each of a prompt id and sample.
      states: for each stop set the state [B] of each automaton.
      live: [B] bool, the response continues.
      tokens: [B, C] i32, the response.
      logp: [B, C] f32.
    """

    layers: tuple[KeyValues, ...]
    hidden: Array
    filled: Array
    step: Array
    limit: Array
    stop: Array
    row_key: Array
    states: tuple[tuple[Array, ...], ...]
    live: Array
    tokens: Array
    logp: Array


class NewRows(NamedTuple):
    """Responses of one prompt that start; padded to B rows by slot B, which does not exist.

    Attributes:
      slot: [B] i32, where each goes.
      prompt_id, sample, limit, stop: [B] i32, of each.
    """

    slot: Array
    prompt_id: Array
    sample: Array
    limit: Array
    stop: Array


def empty_slots(config: ModelConfig, count: int, columns: int, tables: Tables, key: Array) -> Slots:
    """Slots without responses."""

    def zeros() -> Array:  # each a buffer of its own, since all are donated
        return jnp.zeros((count,), jnp.int32)

    return Slots(
        layers=decode.init_suffix(config, count, columns),
        hidden=jnp.zeros((config.hidden_size, count), config.compute_dtype),
        filled=zeros(), step=zeros(), limit=zeros(), stop=zeros(),
        row_key=jax.vmap(jax.random.fold_in, (None, 0))(key, zeros()),
        states=jax.tree.map(lambda _: zeros(), tables),
        live=zeros() != 0,
        tokens=jnp.zeros((count, columns), jnp.int32),
        logp=jnp.zeros((count, columns), jnp.float32),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def prefill(config: ModelConfig, params: Params, tokens: Array, length: Array) -> tuple[Array, tuple[KeyValues, ...]]:
    """(hidden [D, 1], keys and values) of one prompt [S], right-padded."""
    hidden, prefix = decode.prefill(config, params, tokens[None], length[None])
    return hidden, prefix.layers


@functools.partial(jax.jit, donate_argnames="slots")
def insert(
    slots: Slots, new: NewRows, hidden: Array, layers: tuple[KeyValues, ...], length: Array, key: Array
) -> Slots:
    """Puts responses of one prefilled prompt into their slots."""
    columns = layers[0].k.shape[-1]

    def put(own: KeyValues, prompt: KeyValues) -> KeyValues:
        return KeyValues(
            own.k.at[new.slot, :, :, :columns].set(prompt.k, mode="drop"),
            own.v.at[new.slot, :, :columns].set(prompt.v, mode="drop"),
        )

    def write(field: Array, value: Array | int | bool) -> Array:
        return field.at[new.slot].set(value, mode="drop")

    keys = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))(new.prompt_id, new.sample)
    return dataclasses.replace(
        slots,
        layers=tuple(put(own, prompt) for own, prompt in zip(slots.layers, layers, strict=True)),
        hidden=slots.hidden.at[:, new.slot].set(hidden, mode="drop"),
        filled=write(slots.filled, length),
        step=write(slots.step, 0),
        limit=write(slots.limit, new.limit),
        stop=write(slots.stop, new.stop),
        row_key=write(slots.row_key, keys),
        states=jax.tree.map(lambda state: write(state, 0), slots.states),
        live=write(slots.live, True),
    )


@functools.partial(jax.jit, static_argnames=("config", "steps"), donate_argnames="slots")
def run(
    config: ModelConfig, packed: Params, slots: Slots, sampling: Sampling, tables: Tables, free_at: Array, *, steps: int
) -> tuple[Slots, Array]:
    """Up to `steps` tokens per slot; returns early once `free_at` slots are free.

    Returns:
      (slots, number of steps).
    """

    def more(carry: tuple[Slots, Array]) -> Array:
        return (carry[1] < steps) & (jnp.sum(~carry[0].live) < free_at)

    def body(carry: tuple[Slots, Array]) -> tuple[Slots, Array]:
        slots, token = _draw(config, packed, carry[0], sampling, tables)
        return _feed(config, packed, slots, token), carry[1] + 1

    return lax.while_loop(more, body, (slots, jnp.int32(0)))


def _draw(
    config: ModelConfig, packed: Params, slots: Slots, sampling: Sampling, tables: Tables
) -> tuple[Slots, Array]:
    """Samples the next token of each live slot, and ends those that are complete."""
    rows, columns = slots.tokens.shape
    uniforms = jax.vmap(lambda key, step: jax.random.uniform(jax.random.fold_in(key, step), (2,)))(
        slots.row_key, slots.step
    )
    token, logp = sample(decode.next_logits(config, packed, slots.hidden), uniforms, sampling)
    place = (jnp.arange(rows), jnp.where(slots.live, slots.step, columns))
    states = jax.tree.map(
        lambda table, state: jnp.where(slots.live, table[state, token], state), tables, slots.states
    )
    complete = jnp.stack(
        [
            functools.reduce(jnp.logical_or, [s == t.shape[0] - 1 for t, s in zip(of_set, own, strict=True)])
            for of_set, own in zip(tables, states, strict=True)
        ]
    )
    step = slots.step + slots.live
    over = complete[slots.stop, jnp.arange(rows)] | (step >= slots.limit)
    return dataclasses.replace(
        slots,
        tokens=slots.tokens.at[place].set(token, mode="drop"),
        logp=slots.logp.at[place].set(logp, mode="drop"),
        states=states,
        step=step,
        live=slots.live & ~over,
    ), token


def _feed(config: ModelConfig, packed: Params, slots: Slots, token: Array) -> Slots:
    """Reads a token in each live slot: the slot's own columns are its prefix."""
    rows, columns = slots.tokens.shape
    single = decode.init_suffix(config, rows, 1)
    prefix = decode.Prefix(slots.layers, slots.filled)
    hidden, single = decode.decode_step(config, packed, prefix, single, token, jnp.int32(0))
    row, column = jnp.arange(rows), jnp.where(slots.live, slots.filled, columns)

    def put(own: KeyValues, new: KeyValues) -> KeyValues:
        return KeyValues(
            own.k.at[row, :, :, column].set(new.k[..., 0], mode="drop", unique_indices=True),
            own.v.at[row, :, column].set(new.v[:, :, 0], mode="drop", unique_indices=True),
        )

    layers = tuple(put(own, new) for own, new in zip(slots.layers, single, strict=True))
    return dataclasses.replace(slots, layers=layers, hidden=hidden, filled=slots.filled + slots.live)
