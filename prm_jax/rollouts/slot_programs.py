"""The compiled programs of `SlotEngine`: prefill, insertion of prompts into slots, and a run of decode steps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from prm_jax.models import ModelConfig, decode, decode_rows, four_bit_cache, sampling
from prm_jax.models.sampling import Sampling

Array = jax.Array
Params = dict[str, Any]

DRAW = -1
"""In place of a forced token: draw one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What the model knows of B slots.

    Attributes:
      layers: keys and values, N = B and S = C columns.
      hidden: [D, B], of each slot's last token.
    """

    layers: decode_rows.Layers
    hidden: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The counters of B slots; [B] i32 unless stated otherwise.

    Attributes:
      prompt_id, sample: with the key and the position, they determine the randomness.
      position: tokens of the response so far.
      length: columns in use, prompt included.
      limit: maximum position.
      stop: index of the stop set.
      eos_state, text_state: of the automata.
      live: [B] bool, False for slots that are empty or whose response has ended.
      key: [B, words] u32, data of the key from which the response draws.
    """

    prompt_id: Any
    sample: Any
    position: Any
    length: Any
    limit: Any
    stop: Any
    eos_state: Any
    text_state: Any
    live: Any
    key: Any


COUNTERS = ("prompt_id", "sample", "position", "length", "limit", "stop", "eos_state", "text_state")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """How tokens are drawn and when a response ends.

    Attributes:
      sampling: see ``models.sampling``.
      eos_table: [states, V] i32 automaton of the end tokens, see ``models.stopping``.
      text_tables: [stop sets, states, V] i32, one automaton for the strings of each stop set.
      key_impl: static, of the PRNG.
    """

    sampling: Sampling
    eos_table: Any
    text_tables: Any
    key_impl: Any = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """What a run of at most k steps wrote; [k, B].

    A slot's tokens are in the rows from 0 up to the number of positions by which it has grown.

    Attributes:
      tokens: i32.
      logp, log_mass: f32, see ``models.sampling.Draw``; 0 for forced tokens.
      steps: [] i32, steps that were taken.
    """

    tokens: Array
    logp: Array
    log_mass: Array
    steps: Array


def cache_bytes(config: ModelConfig, slots: int, columns: int, dtype: str) -> int:
    """Memory of the keys and values of all slots."""
    if dtype == "int4":
        return four_bit_cache.cache_bytes(config, slots, columns)
    vectors = 2 * config.num_layers * config.num_kv_heads * slots * columns
    scale = 4 if dtype == "int8" else 0
    return vectors * (config.head_dim * jnp.dtype(dtype).itemsize + scale)


@functools.partial(jax.jit, static_argnames=("config", "slots", "columns", "dtype", "sharding"))
def empty_cache(
    config: ModelConfig, *, slots: int, columns: int, dtype: str, sharding: NamedSharding | None
) -> Cache:
    """A cache of zeros."""
    layers = decode_rows.init_columns(config, slots, columns, dtype)
    return _place(Cache(layers, jnp.zeros((config.hidden_size, slots), config.compute_dtype)), sharding)


@functools.partial(jax.jit, static_argnames=("config", "repack"))
def pack(config: ModelConfig, params: Params, *, repack: bool) -> Params:
    """The parameters in the form that decoding reads fastest."""
    return decode.prepare(config, params, repack=repack)


@functools.partial(jax.jit, static_argnames="config")
def prefill(config: ModelConfig, params: Params, tokens: Array, lengths: Array) -> Cache:
    """Reads right-padded texts [P, S] of at least one token each."""
    hidden, prefix = decode.prefill(config, params, tokens, lengths)
    return Cache(prefix.layers, hidden)


@functools.partial(jax.jit, static_argnames="sharding", donate_argnums=0)
def insert(cache: Cache, prefix: Cache, into: Array, source: Array, *, sharding: NamedSharding | None) -> Cache:
    """Copies text `source[i]` of a prefill to slot `into[i]`, both [F]; slot B is nowhere."""
    layers = decode_rows.copy_columns(cache.layers, prefix.layers, into, source)
    hidden = cache.hidden.at[:, into].set(prefix.hidden[:, source], mode="drop")
    return _place(Cache(layers, hidden), sharding)


@functools.partial(jax.jit, static_argnames="sharding")
def gather(cache: Cache, rows: Array, *, sharding: NamedSharding | None) -> Cache:
    """A cache whose slot i is slot `rows[i]`; rows [B'] i32."""
    layers = jax.tree.map(lambda x: x[rows], cache.layers)
    return _place(Cache(layers, cache.hidden[:, rows]), sharding)


@functools.partial(jax.jit, static_argnames=("config", "sharding", "feed_last"), donate_argnums=2)
def run(
    config: ModelConfig,
    packed: Params,
    cache: Cache,
    slots: Slots,
    forced: Array,
    rules: Rules,
    live_at: Array,
    *,
    sharding: NamedSharding | None,
    feed_last: bool = True,
) -> tuple[Cache, Slots, Written]:
    """Decodes until k steps are taken or at most `live_at` slots are live.

    Each step draws the next token of every live slot from the hidden state of its last one, and feeds it. A new
    slot therefore needs no special first step.

    Args:
      config: the model.
      packed: its parameters, from `pack`.
      cache: donated.
      slots: their counters.
      forced: [k, B] i32, tokens to write instead of drawing one, `DRAW` elsewhere; row i is for the slot's i-th token
        in this run.
      rules: how tokens are drawn and when a response ends; forced tokens never end one.
      live_at: [] i32.
      sharding: of the cache, None on one device.
      feed_last: False does not feed tokens after which no slot is live, which no response continues from.

    Returns:
      (the cache, the counters, what was written).
    """
    columns = cache.layers[0].k.shape[-1]
    zeros = jnp.zeros(forced.shape, jnp.float32)
    blank = Written(jnp.zeros_like(forced), zeros, zeros, jnp.int32(0))

    def more(carry: tuple[Cache, Slots, Written]) -> Array:
        _, slots, written = carry
        return (written.steps < forced.shape[0]) & (slots.live.sum() > live_at)

    def body(carry: tuple[Cache, Slots, Written]) -> tuple[Cache, Slots, Written]:
        cache, slots, written = carry
        drawn = _draw(config, packed, cache.hidden, slots, forced[written.steps], rules)
        tokens = drawn.tokens
        after = _advance(slots, tokens, forced[written.steps] != DRAW, rules)

        def feed(cache: Cache) -> Cache:
            at = jnp.where(slots.live, slots.length, columns)
            hidden, layers = decode_rows.decode_rows(config, packed, cache.layers, tokens, at)
            # A held slot continues from its last token.
            return Cache(layers, jnp.where(slots.live, hidden, cache.hidden))

        cache = feed(cache) if feed_last else lax.cond(after.live.any(), feed, lambda cache: cache, cache)
        written = Written(
            lax.dynamic_update_index_in_dim(written.tokens, tokens, written.steps, 0),
            lax.dynamic_update_index_in_dim(written.logp, drawn.logp, written.steps, 0),
            lax.dynamic_update_index_in_dim(written.log_mass, drawn.log_mass, written.steps, 0),
            written.steps + 1,
        )
        return cache, after, written

    cache, slots, written = lax.while_loop(more, body, (cache, slots, blank))
    return _place(cache, sharding), slots, written


def _draw(
    config: ModelConfig, packed: Params, hidden: Array, slots: Slots, forced: Array, rules: Rules
) -> sampling.Draw:
    """The next token of each slot."""
    keys = jax.random.wrap_key_data(slots.key, impl=rules.key_impl)
    uniforms = jax.vmap(sampling.row_uniform)(keys, slots.prompt_id, slots.sample, slots.position)
    drawn = sampling.sample(decode.next_logits(config, packed, hidden), uniforms, rules.sampling)
    mine = forced == DRAW
    return sampling.Draw(
        jnp.where(mine, drawn.tokens, forced), jnp.where(mine, drawn.logp, 0.0), jnp.where(mine, drawn.log_mass, 0.0)
    )


def _advance(slots: Slots, tokens: Array, forced: Array, rules: Rules) -> Slots:
    """The counters after one more token; an automaton that accepts inside forced tokens starts again."""
    eos = rules.eos_table[slots.eos_state, tokens]
    text = rules.text_tables[slots.stop, slots.text_state, tokens]
    eos_accepts, text_accepts = eos == rules.eos_table.shape[0] - 1, text == rules.text_tables.shape[1] - 1
    over = (eos_accepts | text_accepts) & ~forced
    position = slots.position + slots.live
    return dataclasses.replace(
        slots,
        position=position,
        length=slots.length + slots.live,
        eos_state=jnp.where(forced & eos_accepts, 0, jnp.where(slots.live, eos, slots.eos_state)),
        text_state=jnp.where(forced & text_accepts, 0, jnp.where(slots.live, text, slots.text_state)),
        live=slots.live & ~over & (position < slots.limit),
    )


def _place(cache: Cache, sharding: NamedSharding | None) -> Cache:
    if sharding is None:
        return cache
    keep = lax.with_sharding_constraint
    layers = jax.tree.map(lambda x: keep(x, sharding), cache.layers)
    return Cache(layers, keep(cache.hidden, NamedSharding(sharding.mesh, PartitionSpec(None, sharding.spec[0]))))
