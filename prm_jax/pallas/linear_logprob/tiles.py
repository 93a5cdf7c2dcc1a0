"""The op as a scan over tiles of the logits: the algorithm of both XLA backends, which differ in the tile's shape.

Forward: for each block of tokens an online log-sum-exp over blocks of the vocabulary.  Backward: for each block
of the vocabulary the tiles are made again and turned into ``d = dloss/dlogits`` on the spot, so that the head's
gradient is complete, and rounded once, when the scan leaves the block.  Statistics and sums are float32.

A block of tokens takes every n-th row, not neighbouring ones: rows that are sharded over devices then give every
device its share of each block, where a contiguous block would sit on one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec

_MASKED = -1e30  # finite, so that the running maximum never meets inf - inf


class _Stats(NamedTuple):
    """The running statistics of a block of rows: maximum, sum of exp, target logit, sum of exp times logit."""

    top: jax.Array
    total: jax.Array
    target: jax.Array
    moment: jax.Array | None


def forward(spec: Spec, inputs: Inputs, *, token_block: int, vocab_block: int) -> Outputs:
    """See ``Backend.forward``; at most ``token_block x vocab_block`` logits exist at once."""
    count = inputs.hidden.shape[0]
    blocks = _TokenBlocks(count, token_block)
    vocab = _VocabBlocks(inputs.head.shape[0], vocab_block)
    rows = blocks.split((inputs.hidden, inputs.tokens, inputs.inverse_temperature))
    kind = _like(inputs)

    def one_block(row: Any) -> Outputs:
        hidden, tokens, inverse_temperature = row

        def update(j: Any, stats: _Stats) -> _Stats:
            tile = _tile(spec, hidden, inputs.head, inputs.bias, inverse_temperature, vocab, j)
            return _merge(stats, tile.logits, tile.hit(tokens))

        zeros = kind(jnp.zeros(hidden.shape[:1], jnp.float32))
        start = _Stats(zeros + _MASKED, zeros, zeros, zeros if spec.entropy else None)
        stats = _loop(vocab.count, update, start)
        lse = stats.top + jnp.log(stats.total)
        entropy = None if stats.moment is None else lse - stats.moment / stats.total
        return Outputs(lse, stats.target, entropy)

    if blocks.count == 1:
        out = one_block(blocks.take(rows, 0))
    else:
        zeros = kind(jnp.zeros((blocks.size, blocks.count), jnp.float32))
        start_out = Outputs(zeros, zeros, zeros if spec.entropy else None)

        def body(i: Any, out: Outputs) -> Outputs:
            return blocks.put(out, i, one_block(blocks.take(rows, i)))

        out = blocks.join(_loop(blocks.count, body, start_out))
    known = (inputs.tokens >= 0) & (inputs.tokens < inputs.head.shape[0])
    return out._replace(target=jnp.where(known, out.target, jnp.nan))


def backward(
    spec: Spec,
    inputs: Inputs,
    outputs: Outputs,
    cotangents: Outputs,
    wanted: tuple[bool, bool, bool],
    *,
    token_block: int,
    vocab_block: int,
) -> Gradients:
    """See ``Backend.backward``; tiles as in ``forward``, plus float32 sums the size of what is returned."""
    want_hidden, want_head, want_bias = wanted
    hidden, head, bias = inputs.hidden, inputs.head, inputs.bias
    blocks = _TokenBlocks(hidden.shape[0], token_block)
    vocab = _VocabBlocks(head.shape[0], vocab_block)
    rows = blocks.split((hidden, inputs.tokens, inputs.inverse_temperature, outputs, cotangents))
    kind = _like(inputs, cotangents)

    def tile_gradient(i: Any, j: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        block_hidden, tokens, inverse_temperature, out, cotangent = blocks.take(rows, i)
        tile = _tile(spec, block_hidden, head, bias, inverse_temperature, vocab, j)
        return _tile_gradient(spec, tile, tokens, inverse_temperature, out, cotangent), block_hidden, tile.head

    def one_vocab_block(j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        d_hidden, d_head, d_bias = carry

        def accumulate(i: Any, sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            d_hidden, d_rows, d_columns = sums
            d, block_hidden, block_head = tile_gradient(i, j)
            narrow = d.astype(hidden.dtype)  # float32 times bfloat16 would run at a fraction of the speed
            if want_hidden:
                part = jnp.einsum("tv,vd->td", narrow, block_head, preferred_element_type=jnp.float32)
                d_hidden = blocks.add(d_hidden, i, part)
            if want_head:
                d_rows = d_rows + jnp.einsum(
                    "tv,td->vd", narrow, block_hidden, preferred_element_type=jnp.float32
                )
            if want_bias:
                d_columns = d_columns + jnp.sum(d, axis=0)
            return d_hidden, d_rows, d_columns

        d_rows = kind(jnp.zeros((vocab.size, head.shape[1]), jnp.float32)) if want_head else None
        d_columns = kind(jnp.zeros((vocab.size,), jnp.float32)) if want_bias else None
        d_hidden, d_rows, d_columns = _loop(blocks.count, accumulate, (d_hidden, d_rows, d_columns))
        if want_head:
            d_head = vocab.add(d_head, j, d_rows)
        if want_bias:
            d_bias = vocab.add(d_bias, j, d_columns)
        return d_hidden, d_head, d_bias

    shape = (blocks.size, blocks.count, hidden.shape[1]) if blocks.count > 1 else (blocks.size, hidden.shape[1])
    start = (
        kind(jnp.zeros(shape, jnp.float32)) if want_hidden else None,
        kind(jnp.zeros(head.shape, head.dtype)) if want_head else None,
        kind(jnp.zeros(bias.shape, bias.dtype)) if want_bias and bias is not None else None,
    )
    d_hidden, d_head, d_bias = _loop(vocab.count, one_vocab_block, start)
    if want_hidden:
        d_hidden = blocks.join(d_hidden).astype(hidden.dtype)
    return Gradients(d_hidden, d_head, d_bias)


class _Tile(NamedTuple):
    """A piece of the logits."""

    logits: jax.Array  # [token block, vocab block] float32
    slope: jax.Array | None  # derivative of the soft cap
    head: jax.Array  # [vocab block, D] in hidden's dtype
    columns: jax.Array  # [vocab block] int32 token ids
    fresh: jax.Array | None  # [vocab block] bool, False for columns that the block before has already seen

    def hit(self, tokens: jax.Array) -> jax.Array:
        """[token block, vocab block] bool, True where a column is the row's token."""
        hit = tokens[:, None] == self.columns
        return hit if self.fresh is None else hit & self.fresh


def _tile(
    spec: Spec,
    hidden: jax.Array,
    head: jax.Array,
    bias: jax.Array | None,
    inverse_temperature: jax.Array | None,
    vocab: "_VocabBlocks",
    j: Any,
) -> _Tile:
    block_head = vocab.take(head, j).astype(hidden.dtype)
    logits = jnp.einsum("td,vd->tv", hidden, block_head, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + vocab.take(bias, j).astype(jnp.float32)
    slope = None
    if spec.softcap is not None:
        squashed = jnp.tanh(logits / spec.softcap)
        logits, slope = spec.softcap * squashed, 1.0 - squashed * squashed
    if inverse_temperature is not None:
        logits = logits * inverse_temperature[:, None]
    columns, fresh = vocab.columns(j)
    if fresh is not None:
        logits = jnp.where(fresh, logits, _MASKED)
    return _Tile(logits, slope, block_head, columns, fresh)


def _merge(stats: _Stats, logits: jax.Array, hit: jax.Array) -> _Stats:
    """One step of the online log-sum-exp (arXiv:1805.02867, algorithm 3)."""
    top = jnp.maximum(stats.top, jnp.max(logits, axis=1))
    scale = jnp.exp(stats.top - top)
    weights = jnp.exp(logits - top[:, None])
    moment = stats.moment
    if moment is not None:
        # From its own copy, so that the other statistics have the same bits with the entropy as without.
        copy, copy_top = jax.lax.optimization_barrier((logits, top))
        moment = moment * scale + jnp.sum(jnp.exp(copy - copy_top[:, None]) * copy, axis=1)
    return _Stats(
        top=top,
        total=stats.total * scale + jnp.sum(weights, axis=1),
        target=stats.target + jnp.sum(jnp.where(hit, logits, 0.0), axis=1),
        moment=moment,
    )


def _tile_gradient(
    spec: Spec,
    tile: _Tile,
    tokens: jax.Array,
    inverse_temperature: jax.Array | None,
    out: Outputs,
    cotangent: Outputs,
) -> jax.Array:
    """``dloss/d(hidden . head + bias)`` of a tile, float32; a cotangent of None is zero.

    With ``p = softmax(l)``: dlse/dl = p, dtarget/dl = one-hot, dentropy/dl = -p (log p + entropy).
    """
    log_p = tile.logits - out.lse[:, None]
    weight: Any = 0.0
    if cotangent.lse is not None:
        weight = cotangent.lse[:, None]
    if cotangent.entropy is not None:
        assert out.entropy is not None
        weight = weight - cotangent.entropy[:, None] * (log_p + out.entropy[:, None])
    d = jnp.exp(log_p) * weight
    if cotangent.target is not None:
        d = d + jnp.where(tile.hit(tokens), cotangent.target[:, None], 0.0)
    if tile.fresh is not None:
        d = jnp.where(tile.fresh, d, 0.0)
    if inverse_temperature is not None:
        d = d * inverse_temperature[:, None]
    return d if tile.slope is None else d * tile.slope


class _TokenBlocks:
    """Rows i, i + n, i + 2 n, ... as block i of n; a few rows of zeros are added where n does not divide."""

    def __init__(self, total: int, block: int):
        least = -(-total // max(1, min(block, total)))
        # A count that divides saves the copy that padding costs.
        self.count = next((n for n in range(least, 2 * least) if total % n == 0), least)
        self.size = -(-total // self.count)
        self.total = total

    def split(self, rows: Any) -> Any:
        """[T, ...] -> [size, count, ...] for every array; unchanged when there is one block."""

        def one(x: jax.Array) -> jax.Array:
            missing = self.size * self.count - self.total
            if missing:
                x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(self.size, self.count, *x.shape[1:])

        return rows if self.count == 1 else jax.tree.map(one, rows)

    def join(self, rows: Any) -> Any:
        """The inverse of ``split``."""

        def one(x: jax.Array) -> jax.Array:
            return x.reshape(self.size * self.count, *x.shape[2:])[: self.total]

        return rows if self.count == 1 else jax.tree.map(one, rows)

    def take(self, rows: Any, i: Any) -> Any:
        """Block i of split rows."""
        if self.count == 1:
            return rows
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), rows)

    def put(self, rows: Any, i: Any, block: Any) -> Any:
        """Split rows with block i replaced."""
        return jax.tree.map(lambda x, b: jax.lax.dynamic_update_index_in_dim(x, b, i, axis=1), rows, block)

    def add(self, rows: jax.Array, i: Any, block: jax.Array) -> jax.Array:
        """Split rows with ``block`` added to block i."""
        return rows + block if self.count == 1 else self.put(rows, i, self.take(rows, i) + block)


class _VocabBlocks:
    """Equal contiguous blocks; the last one reaches back over its neighbour instead of beyond the end."""

    def __init__(self, total: int, block: int):
        self.count = -(-total // max(1, min(block, total)))
        self.size = -(-total // self.count)
        self.total = total

    def start(self, j: Any) -> Any:
        return jnp.minimum(j * self.size, self.total - self.size)

    def take(self, x: jax.Array, j: Any) -> jax.Array:
        """Rows of block j."""
        return x if self.count == 1 else jax.lax.dynamic_slice_in_dim(x, self.start(j), self.size, axis=0)

    def add(self, x: jax.Array, j: Any, block: jax.Array) -> jax.Array:
        """``x`` with ``block`` added to block j; rows that are not fresh must be zero, and stay as they are."""
        if self.count == 1:
            return block.astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(
            x, self.take(x, j) + block.astype(x.dtype), self.start(j), axis=0
        )

    def columns(self, j: Any) -> tuple[jax.Array, jax.Array | None]:
        """Token ids of block j, and which of them no block before has."""
        within = jnp.arange(self.size, dtype=jnp.int32)
        if self.count == 1:
            return within, None
        columns = within + self.start(j)
        if self.size * self.count == self.total:
            return columns, None
        return columns, columns >= j * self.size


def _loop(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """``lax.fori_loop``, without a loop when there is nothing to repeat, so that XLA can fuse across."""
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)


def _like(*references: Any) -> Callable[[jax.Array], jax.Array]:
    """Marks a loop's start values as varying over the mesh axes that the inputs vary over (under shard_map)."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(references):
        axes |= jax.typeof(leaf).manual_axis_type.varying

    def mark(x: jax.Array) -> jax.Array:
        return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x

    return mark
