"""Log-probs of the tokens of a batch under a model, without an array over the vocabulary.

Policy, reward model and reference all use this function: equal parameters give equal bits, so that implicit rewards
are exactly 0 at initialisation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.models.config import ModelConfig
from prm_jax.models.gathers import Gathers
from prm_jax.models.rows import mesh_of, row_axes
from prm_jax.models.transformer import Params, head_matrix, hidden_states
from prm_jax.pallas import LogprobOptions, Partition, linear_lse_and_target, sharded_lse_and_target


def token_logprobs(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    implementation: str | None = None,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    start: int = 0,
    compact: bool = False,
) -> jax.Array:
    """``log p(tokens[:, t] | tokens[:, :t])`` for every token.

    Args:
      config: the model.
      params: its parameters, which receive gradients.
      tokens: [B, T] int in [0, V).
      mask: [B, T] bool, which tokens are scored; attention is causal over the whole row regardless.  None scores
        all.  All False gives zeros.
      temperature: positive; a scalar, [B], or [B, T].  Logits are divided by it.  No gradient.
      implementation: of ``pallas.linear_lse_and_target``; None chooses.
      positions: [B, T] int32; see ``Transformer``.
      segment_ids: [B, T] int32 of packed rows; the first token of every segment scores 0.
      start: columns before it are 0 and cost no work in the head; for example the prompts' width.  Static.
      compact: skip the head's work on tokens that are not scored too; for rows on one device, see
        ``pallas.linear_lse_and_target``.

    Returns:
      [B, T] float32: 0 at t = 0, where ``mask`` is False, and before ``start``.
    """
    head = _Head(temperature, implementation, compact, entropy=False)
    lse, target = _statistics(config, params, tokens, mask, positions, segment_ids, start, head)
    return target - lse


def token_logprobs_and_entropy(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    implementation: str | None = None,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    start: int = 0,
    compact: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """``token_logprobs``, and the entropy of the distribution that each token was drawn from.

    Returns:
      ``(logp, entropy)``, both [B, T] float32 and 0 at t = 0, where ``mask`` is False, and before ``start``;
      gradients flow through both.  The entropy is that at ``temperature``, in nats, in [0, log V].
    """
    head = _Head(temperature, implementation, compact, entropy=True)
    lse, target, entropy = _statistics(config, params, tokens, mask, positions, segment_ids, start, head)
    return target - lse, entropy


class _Head(NamedTuple):
    """How ``linear_lse_and_target`` is called."""

    temperature: float | jax.Array
    implementation: str | None
    compact: bool
    entropy: bool


def _statistics(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array | None,
    positions: jax.Array | None,
    segment_ids: jax.Array | None,
    start: int,
    head: _Head,
) -> list[jax.Array]:
    """The statistics of ``linear_lse_and_target``, each [B, T] and 0 on tokens that are not scored."""
    rows, length = tokens.shape
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool {list(tokens.shape)}, found {mask.dtype}{list(mask.shape)}")
    first = min(max(start, 1), length)  # the first scored column; nothing predicts column 0
    if first == length:
        return [jnp.zeros(tokens.shape, jnp.float32)] * (3 if head.entropy else 2)
    scored = jnp.ones_like(tokens, bool) if mask is None else mask
    if segment_ids is not None:
        scored = scored & jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1], ((0, 0), (1, 0)))
    hidden = hidden_states(config, params, tokens, positions=positions, segment_ids=segment_ids)
    temperature = _head_temperature(config, head.temperature)
    if jnp.ndim(temperature):
        each = jnp.asarray(temperature)
        temperature = jnp.broadcast_to(each[:, None] if each.ndim == 1 else each, tokens.shape)
    matrix = head_matrix(config, params)
    # On a mesh hidden states are not cut: the last column is masked instead, so that rows stay where and what they are.
    last = length if first == 1 and mesh_of(hidden, matrix) is not None else length - 1

    def shifted(x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, first:], ((0, 0), (0, last - length + 1))).reshape(-1)

    options = LogprobOptions(implementation=head.implementation, entropy=head.entropy, compact=head.compact)
    statistics = _head_statistics(
        rows,
        hidden[:, first - 1 : last].reshape(-1, hidden.shape[-1]),
        matrix,
        shifted(tokens),
        mask=shifted(scored),
        temperature=shifted(jnp.asarray(temperature)) if jnp.ndim(temperature) else temperature,
        softcap=config.logit_softcap,
        options=options,
    )
    found = [x.reshape(rows, last + 1 - first)[:, : length - first] for x in statistics]
    return [jnp.pad(x, ((0, 0), (first, 0))) for x in found]


def _head_temperature(config: ModelConfig, temperature: float | jax.Array) -> float | jax.Array:
    """The temperature that divides products with the head, after the soft cap."""
    return temperature if config.logit_divisor == 1 else temperature * config.logit_divisor


def _head_statistics(
    rows: int, hidden: jax.Array, head: jax.Array, tokens: jax.Array, **given: Any
) -> Sequence[jax.Array]:
    """``linear_lse_and_target``; on a mesh, every device computes its own rows and its own columns of the head."""
    mesh = mesh_of(hidden, head)
    axes = () if mesh is None else row_axes(mesh, rows)
    if mesh is None or not axes:
        return linear_lse_and_target(hidden, head, tokens, **given)
    vocab, width = head.shape
    columns, features = (mesh.shape.get(axis, 1) for axis in ("tensor", "fsdp"))
    gathers = Gathers(mesh)
    partition = Partition(
        gathers.mesh,
        token_axes=gathers.names(axes),
        vocab_axis="tensor" if columns > 1 and vocab % columns == 0 else None,
        gather_axes=gathers.axes if "fsdp" in axes and width % features == 0 else (),
        gather_once=True,
    )

    def run(hidden: jax.Array, head: jax.Array, tokens: jax.Array) -> list[jax.Array]:
        statistics = sharded_lse_and_target(partition, hidden, head, tokens, **given)
        return [jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(axes))) for x in statistics]

    # Compiled, because outside ``jax.jit`` an abstract mesh has no devices.
    return jax.jit(run, inline=True)(hidden, head, tokens)
