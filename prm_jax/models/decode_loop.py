"""The generation loop: one token per row and iteration, until every row is finished."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prm_jax.models import decode
from prm_jax.models.config import ModelConfig
from prm_jax.models.responses import Samples
from prm_jax.models.sampling import Draw, Sampling, row_uniforms, sample
from prm_jax.models.transformer import Params

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResponseSpec:
    """What is sampled for each prompt, and when a response ends.

    Attributes:
      sampling: from ``make_sampling``.
      tables: stop automata, each [states, V] i32 as from ``stopping.token_table``; a response ends when any of
        them accepts.
      samples: G, responses per prompt.
      steps: R, tokens per response at most.
    """

    sampling: Sampling
    tables: tuple[Any, ...]
    samples: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Written:
    """The loop's state: [R, B] arrays, step-major so that each step writes one contiguous row."""

    tokens: Array
    mask: Array
    logp: Array
    log_mass: Array
    states: tuple[Array, ...]  # [B] i32 each: the state of each stop automaton
    done: Array  # [B] bool


def write_responses(
    config: ModelConfig,
    packed: Params,
    hidden: Array,
    prefix: decode.Prefix,
    prompt_ids: Array,
    key: Array,
    spec: ResponseSpec,
) -> tuple[Samples, tuple[decode.KeyValues, ...]]:
    """Generates responses to prompts that were prefilled; traceable.

    Args:
      config: the model.
      packed: its parameters, from ``decode.prepare``.
      hidden: [D, P], of the last token of each prompt.
      prefix: of the P prompts; a prompt of length 0 is padding, whose rows stay empty.
      prompt_ids: [P] i32, see ``generate``.
      key: typed PRNG key, consumed.
      spec: what to sample.

    Returns:
      (``Samples`` of P * G rows and R columns; keys and values of the responses, possibly without those of a
      row's last token).
    """
    rows = hidden.shape[1] * spec.samples
    uniforms = row_uniforms(key, prompt_ids, samples=spec.samples, steps=spec.steps)
    logits = jnp.repeat(decode.next_logits(config, packed, hidden), spec.samples, axis=0)
    empty = jnp.repeat(prefix.lengths == 0, spec.samples)

    def write(written: _Written, logits: Array, step: Array) -> tuple[_Written, Array]:
        uniform = lax.dynamic_index_in_dim(uniforms, step, keepdims=False)
        drawn = sample(logits, uniform, spec.sampling)
        return _write(written, spec.tables, step, drawn), drawn.tokens

    def more(carry: Any) -> Array:
        written, _, _, step = carry
        return (step < spec.steps) & ~jnp.all(written.done)

    def body(carry: Any) -> Any:
        written, token, suffix, step = carry
        hidden, suffix = decode.decode_step(config, packed, prefix, suffix, token, step - 1)
        written, token = write(written, decode.next_logits(config, packed, hidden), step)
        return written, token, suffix, step + 1

    written, token = write(_blank(spec, rows, empty), logits, jnp.int32(0))
    suffix = decode.init_suffix(config, rows, spec.steps)
    written, _, suffix, _ = lax.while_loop(more, body, (written, token, suffix, jnp.int32(1)))
    samples = Samples(
        written.tokens.T, written.mask.T, written.logp.T, written.done & ~empty, log_mass=written.log_mass.T
    )
    return samples, suffix


def _blank(spec: ResponseSpec, rows: int, done: Array) -> _Written:
    return _Written(
        tokens=jnp.zeros((spec.steps, rows), jnp.int32),
        mask=jnp.zeros((spec.steps, rows), bool),
        logp=jnp.zeros((spec.steps, rows), jnp.float32),
        log_mass=jnp.zeros((spec.steps, rows), jnp.float32),
        states=tuple(jnp.zeros((rows,), jnp.int32) for _ in spec.tables),
        done=done,
    )


def _write(written: _Written, tables: tuple[Array, ...], step: Array, drawn: Draw) -> _Written:
    token, logp, log_mass = drawn
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
        log_mass=update(written.log_mass, jnp.where(live, log_mass, 0.0)),
        states=states,
        done=done,
    )
