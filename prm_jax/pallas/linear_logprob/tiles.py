"""The op as loops over tiles of the logits: the algorithm of both XLA backends, which differ in the tile's shape.

Forward: for each block of the vocabulary an online log-sum-exp, over blocks of tokens. Backward: for each block
of the vocabulary the tiles are recomputed and turned into ``d = dloss/dlogits`` immediately, so that the head's
gradient is complete, and rounded once, at the end of the block. Statistics and sums are float32.

The vocabulary is the outer loop of both, with a static number of iterations: collectives (for a head that is split over
devices) are there, where every device participates, and never inside the loop over tokens, whose number of iterations
may depend on each device's valid tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from prm_jax.pallas.linear_logprob import tile
from prm_jax.pallas.linear_logprob.blocking import TokenBlocks, VocabBlocks, loop
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec, Wanted, vocab_size
from prm_jax.varying import mark, varying_axes

_COMPACT_ROWS = 256  # finer blocks follow the number of valid tokens more closely
_COMPACT_ROWS_ACCELERATOR = 1024
_HEAD_COLUMNS_CPU = 8192  # of the head's gradient at once: XLA's product for CPUs cannot accumulate in place


def forward(
    spec: Spec, inputs: Inputs, *, token_block: int, vocab_block: int, keep: DTypeLike | None
) -> tuple[Outputs, jax.Array | None]:
    """See ``Backend.forward``; at most ``token_block x vocab_block`` logits exist at once.

    With ``keep`` (then ``spec.residual == "logits"``) the second result holds all tiles' log-probs, in that dtype.
    """
    hidden, bias = inputs.hidden, inputs.bias
    blocks, vocab = _plan(spec, inputs, token_block, vocab_block)
    rows = blocks.split((hidden, inputs.tokens, inputs.inverse_temperature))
    varying = mark(varying_axes(inputs))

    def one_vocab_block(j: Any, carry: Any) -> Any:
        block = tile.columns(spec, inputs.head, bias, vocab, j, hidden.dtype)

        def one_token_block(i: Any, carry: Any) -> Any:
            stats, kept = carry
            block_hidden, tokens, inverse_temperature = blocks.take(rows, i)
            logits, _ = tile.logits(spec, block, block_hidden, inverse_temperature)
            new = tile.merge(blocks.take(stats, i), logits, block.hit(tokens))
            if keep is not None:  # there is one block of the vocabulary then, so the log-sum-exp is complete
                kept = blocks.put(kept, i, (logits - new.lse()[:, None]).astype(keep))
            return blocks.put(stats, i, new), kept

        return blocks.loop(one_token_block, carry, inputs.valid)

    zeros = varying(jnp.zeros(blocks.shape(), jnp.float32))
    start = tile.Stats(zeros + tile.MASKED, zeros, zeros, zeros if spec.entropy else None)
    kept = None if keep is None else varying(jnp.zeros(blocks.shape(vocab.total), keep))
    stats, kept = loop(vocab.count, one_vocab_block, (start, kept))
    return tile.outputs(blocks.join(stats), inputs.tokens, vocab.total), kept


def backward(
    spec: Spec,
    inputs: Inputs,
    outputs: Outputs,
    kept: jax.Array | None,
    cotangents: Outputs,
    wanted: Wanted,
    *,
    token_block: int,
    vocab_block: int,
    sums: Gradients | None = None,
) -> Gradients:
    """See ``Backend.backward``; tiles as in ``forward``, plus float32 sums the size of what is returned.

    With ``sums`` (float32, their ``hidden`` unused) and one block of the vocabulary, the gradients of head and bias
    are added to these and returned in float32.
    """
    want_hidden, want_head, want_bias = wanted
    hidden, head, bias, layout = inputs.hidden, inputs.head, inputs.bias, spec.head_layout
    blocks, vocab = _plan(spec, inputs, token_block, vocab_block)
    rows = blocks.split(_Rows(hidden, inputs.tokens, inputs.inverse_temperature, outputs, cotangents))
    varying = mark(varying_axes(inputs, cotangents))

    def one_vocab_block(j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        d_hidden, d_head, d_bias = carry
        block = tile.columns(spec, head, bias, vocab, j, hidden.dtype)

        def one_token_block(i: Any, sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            d_hidden, d_block, d_columns = sums
            taken = _Rows(*blocks.take(rows, i))
            d = _tile_gradient(spec, block, taken, None if kept is None else blocks.take(kept, i))
            narrow = d.astype(hidden.dtype)  # float32 times bfloat16 would run at a fraction of the speed
            if want_hidden:
                part = jnp.einsum(f"tv,{layout}->td", narrow, block.head, preferred_element_type=jnp.float32)
                d_hidden = blocks.add(d_hidden, i, part)
            if want_head:
                d_block = _add_head_gradient(spec, d_block, narrow, taken.hidden)
            if want_bias:
                d_columns = d_columns + jnp.sum(d, axis=0)
            return d_hidden, d_block, d_columns

        if sums is not None:
            d_block, d_columns = sums.head, sums.bias
        else:
            d_block = varying(jnp.zeros(block.head.shape, jnp.float32)) if want_head else None
            d_columns = varying(jnp.zeros((vocab.size,), jnp.float32)) if want_bias else None
        d_hidden, d_block, d_columns = blocks.loop(one_token_block, (d_hidden, d_block, d_columns), inputs.valid)
        if want_head:
            if spec.gather_axes:  # the transpose of the gathering
                dimension = 1 - spec.vocab_axis
                d_block = jax.lax.psum_scatter(d_block, spec.gather_axes, scatter_dimension=dimension, tiled=True)
            d_head = vocab.add(d_head, j, d_block, spec.vocab_axis)
        return d_hidden, d_head, vocab.add(d_bias, j, d_columns) if want_bias else None

    start = _zero_gradients(inputs, blocks, wanted, widen=sums is not None)
    d_hidden, d_head, d_bias = loop(vocab.count, one_vocab_block, jax.tree.map(varying, start))
    if want_hidden:
        d_hidden = blocks.join(d_hidden).astype(hidden.dtype)
    return Gradients(d_hidden, d_head, d_bias)


def _zero_gradients(inputs: Inputs, blocks: TokenBlocks, wanted: Wanted, *, widen: bool) -> tuple[Any, Any, Any]:
    """Zeros for the wanted gradients of hidden (split, float32), head and bias (float32 for ``widen``)."""
    hidden, head, bias = inputs.hidden, inputs.head, inputs.bias
    dtypes = [jnp.float32 if widen or x is None else x.dtype for x in (head, bias)]
    return (
        jnp.zeros(blocks.shape(hidden.shape[1]), jnp.float32) if wanted[0] else None,
        jnp.zeros(head.shape, dtypes[0]) if wanted[1] else None,
        jnp.zeros(bias.shape, dtypes[1]) if wanted[2] and bias is not None else None,
    )


class _Rows(NamedTuple):
    """What the backward pass reads of each row."""

    hidden: jax.Array
    tokens: jax.Array
    inverse_temperature: jax.Array | None
    out: Outputs
    cotangent: Outputs


def _tile_gradient(spec: Spec, block: tile.Columns, rows: _Rows, kept: jax.Array | None) -> jax.Array:
    """``dloss/d(hidden . head + bias)`` of a tile, from its kept log-probs or from recomputed logits."""
    if kept is None:
        logits, slope = tile.logits(spec, block, rows.hidden, rows.inverse_temperature)
        log_p = logits - rows.out.lse[:, None]
    else:
        log_p, slope = _unpack(spec, kept, rows.out, rows.inverse_temperature)
    return tile.gradient(block, log_p, slope, rows.tokens, rows.inverse_temperature, rows.out, rows.cotangent)


def _add_head_gradient(spec: Spec, d_block: jax.Array, d: jax.Array, hidden: jax.Array) -> jax.Array:
    """``d_block`` with the product of ``d [t, v]`` and ``hidden [t, D]`` added, in the head's layout.

    On a CPU in pieces, since the product needs memory before it is added: as much as the head.
    """
    pieces = VocabBlocks(d.shape[1], _HEAD_COLUMNS_CPU if spec.target.platform == "cpu" else d.shape[1])

    def one_piece(j: Any, total: jax.Array) -> jax.Array:
        piece, (_, fresh) = pieces.take(d, j, axis=1), pieces.columns(j)
        if fresh is not None:
            piece = jnp.where(fresh, piece, 0)
        part = jnp.einsum(f"tv,td->{spec.head_layout}", piece, hidden, preferred_element_type=jnp.float32)
        return total + part if pieces.count == 1 else pieces.add(total, j, part, spec.vocab_axis)

    return loop(pieces.count, one_piece, d_block)


def _plan(spec: Spec, inputs: Inputs, token_block: int, vocab_block: int) -> tuple[TokenBlocks, VocabBlocks]:
    total = vocab_size(spec, inputs.head)
    compact = inputs.valid is not None
    if compact and spec.token_block is None:
        rows = _COMPACT_ROWS if spec.target.platform == "cpu" else _COMPACT_ROWS_ACCELERATOR
        token_block = min(token_block, rows)
    if spec.residual == "logits":  # every logit is kept anyway
        vocab_block = total
    blocks = TokenBlocks(inputs.hidden.shape[0], token_block, contiguous=compact)
    return blocks, VocabBlocks(total, vocab_block)


def _unpack(
    spec: Spec, kept: jax.Array, out: Outputs, inverse_temperature: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Log-probs and the soft cap's slope from kept log-probs."""
    log_p = kept.astype(jnp.float32)
    if spec.softcap is None:
        return log_p, None
    capped = log_p + out.lse[:, None]
    if inverse_temperature is not None:
        capped = capped / jnp.where(inverse_temperature > 0, inverse_temperature, 1.0)[:, None]  # 0 in added rows
    return log_p, 1.0 - jnp.square(capped / spec.softcap)
