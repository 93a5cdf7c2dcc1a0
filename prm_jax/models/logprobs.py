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
from prm_jax.models.expert_load import ExpertLoad
from prm_jax.models.gathers import Gathers
from prm_jax.models.rows import mesh_of, row_axes
from prm_jax.models.transformer import Params, head_matrix, hidden_states, hidden_states_and_load
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
    return token_statistics(
        config, params, tokens, mask, temperature=temperature, implementation=implementation, positions=positions,
        segment_ids=segment_ids, start=start, compact=compact,
    ).logp  # fmt: skip


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
    found = token_statistics(
        config, params, tokens, mask, temperature=temperature, implementation=implementation, positions=positions,
        segment_ids=segment_ids, start=start, compact=compact, entropy=True,
    )  # fmt: skip
    assert found.entropy is not None
    return found.logp, found.entropy


class TokenStatistics(NamedTuple):
    """What one forward pass says about given tokens.

    Attributes:
      logp: [B, T] float32, as of ``token_logprobs``.
      entropy: [B, T] float32, as of ``token_logprobs_and_entropy``, or None.
      load: how the scored tokens are spread over experts, or None.
    """

    logp: jax.Array
    entropy: jax.Array | None = None
    load: ExpertLoad | None = None


def token_statistics(
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
    entropy: bool = False,
    load: bool = False,
) -> TokenStatistics:
    """``token_logprobs`` and, from the same forward pass, entropies and the experts' load.

    Args:
      config, params, tokens, mask, temperature, implementation, positions, segment_ids, start, compact:
        as in ``token_logprobs``.
      entropy: whether to compute entropies.
      load: whether to sum the experts' load; of a sparse model.

    Returns:
      The statistics; gradients flow through all of them.

    Raises:
      ValueError: ``load`` of a dense model.
    """
    scored = jnp.ones_like(tokens, bool) if mask is None else mask
    if scored.shape != tokens.shape or scored.dtype != jnp.bool_:
        raise ValueError(f"mask must be bool {list(tokens.shape)}, found {scored.dtype}{list(scored.shape)}")
    if segment_ids is not None:
        scored = scored & jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1], ((0, 0), (1, 0)))
    first = min(max(start, 1), tokens.shape[1])  # the first scored column; nothing predicts column 0
    spread = None
    if load:
        counted = scored & (jnp.arange(tokens.shape[1]) >= first)
        hidden, spread = hidden_states_and_load(
            config, params, tokens, counted, positions=positions, segment_ids=segment_ids
        )
    else:
        hidden = hidden_states(config, params, tokens, positions=positions, segment_ids=segment_ids)
    if first == tokens.shape[1]:
        nothing = jnp.zeros(tokens.shape, jnp.float32)
        return TokenStatistics(nothing, nothing if entropy else None, spread)
    options = LogprobOptions(implementation=implementation, entropy=entropy, compact=compact)
    lse, target, *rest = _of_hidden(config, params, hidden, tokens, scored, first, temperature, options)
    return TokenStatistics(target - lse, rest[0] if entropy else None, spread)


def _of_hidden(
    config: ModelConfig,
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    scored: jax.Array,
    first: int,
    temperature: float | jax.Array,
    options: LogprobOptions,
) -> list[jax.Array]:
    """The statistics of ``linear_lse_and_target``, each [B, T] and 0 on tokens that are not scored."""
    rows, length = tokens.shape
    temperature = _head_temperature(config, temperature)
    if jnp.ndim(temperature):
        each = jnp.asarray(temperature)
        temperature = jnp.broadcast_to(each[:, None] if each.ndim == 1 else each, tokens.shape)
    matrix = head_matrix(config, params)
    # On a mesh hidden states are not cut: the last column is masked instead, so that rows stay where and what they are.
    last = length if first == 1 and mesh_of(hidden, matrix) is not None else length - 1

    def shifted(x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, first:], ((0, 0), (0, last - length + 1))).reshape(-1)

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
