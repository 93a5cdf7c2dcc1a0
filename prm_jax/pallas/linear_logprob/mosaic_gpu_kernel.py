"""The Hopper kernel: statistics of rows with wgmma and TMA, logits never in device memory.

Thread blocks form clusters of two. Both work on the same columns and on different rows, so each fetches half
of every piece of the head and multicasts it to the other, which halves the traffic from the second-level cache.
In a block, two warpgroups multiply (each 64 or 128 rows) and a third prefetches through a ring of buffers,
across tiles of the vocabulary, so that the next tile's operands arrive while the statistics of this one are computed.
The vocabulary is split over the grid as well; partial statistics are combined outside. The last tile overlaps its
neighbour instead of extending past the end.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

MASKED = -1e30  # finite, so that the running maximum never meets inf - inf
WARPGROUPS = 2
CLUSTER = 2


class Shape(NamedTuple):
    """Static parameters of the kernel; ``vocab_blocks`` counts those of one split, ``valid`` is an operand."""

    vocab: int
    rows: int  # per warpgroup
    columns: int
    features: int  # per step
    stages: int
    splits: int
    vocab_blocks: int
    feature_steps: int
    layout: str
    softcap: float | None
    entropy: bool
    temperature: bool
    valid: bool
    interpret: bool

    @property
    def statistics(self) -> int:
        """Numbers per row: maximum, sum of exp, target logit, and with the entropy the sum of exp times logit."""
        return 3 + self.entropy

    @property
    def block_rows(self) -> int:
        """Rows of a block of threads."""
        return WARPGROUPS * self.rows


class Scratch(NamedTuple):
    """Shared memory and barriers of a block of threads."""

    hidden_s: Any
    head_s: Any
    tokens_s: Any
    inverse_s: Any
    out_s: Any
    full: Any
    empty: Any
    rows_ready: Any


def call(shape: Shape, interpret: Any, operands: list[jax.Array], kind: Any) -> jax.Array:
    """Partial statistics [``shape.statistics``, splits, T].

    Operands: hidden [T, D], head, tokens [T], inverse temperatures [T], and for ``shape.valid`` the number of rows
    that matter [1] int32: clusters past it do nothing. T is a multiple of a cluster's rows, D of a step's features,
    and V at least a tile's columns.
    """
    hidden = operands[0]
    rows = hidden.shape[0]
    item = jnp.dtype(hidden.dtype).itemsize
    swizzle = plgpu.find_swizzle(shape.features * item * 8)
    transforms = (plgpu.TilingTransform((8, swizzle // item)), plgpu.SwizzleTransform(swizzle))
    head_tile = (shape.columns, shape.features) if shape.layout == "vd" else (shape.features, shape.columns)
    scratch: dict[str, Any] = {
        "hidden_s": plgpu.SMEM((shape.stages, shape.block_rows, shape.features), hidden.dtype, transforms=transforms),
        "head_s": plgpu.SMEM((shape.stages, *head_tile), hidden.dtype, transforms=transforms),
        "tokens_s": plgpu.SMEM((WARPGROUPS, shape.rows), jnp.int32),
        "inverse_s": plgpu.SMEM((WARPGROUPS, shape.rows), jnp.float32),
        "out_s": plgpu.SMEM((WARPGROUPS, shape.statistics, shape.rows), jnp.float32),
        "full": plgpu.Barrier(num_arrivals=2, num_barriers=shape.stages),
        "empty": plgpu.ClusterBarrier(collective_axes=("pair",), num_arrivals=WARPGROUPS, num_barriers=shape.stages),
        "rows_ready": plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS),
    }
    grid = (shape.splits, rows // (CLUSTER * shape.block_rows))
    kernel = plgpu.kernel(
        functools.partial(_body, shape),
        out_type=jax.ShapeDtypeStruct((shape.statistics, shape.splits, rows), jnp.float32, manual_axis_type=kind),
        scratch_types=scratch,
        grid=grid,
        grid_names=("split", "rows"),
        cluster=(CLUSTER,),
        cluster_names=("pair",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **({} if interpret is None else {"interpret": interpret}),
    )
    return kernel(*operands)


def _body(shape: Shape, hidden: Any, head: Any, tokens: Any, inverse: Any, *refs: Any, **scratch: Any) -> None:
    warpgroup, out = lax.axis_index("warpgroup"), refs[-1]
    if not shape.valid:
        _work(shape, warpgroup, hidden, head, tokens, inverse, out, Scratch(**scratch))
        return

    @pl.when(lax.axis_index("rows") * CLUSTER * shape.block_rows < refs[0][0])  # both blocks of a cluster, or none
    def _() -> None:
        _work(shape, warpgroup, hidden, head, tokens, inverse, out, Scratch(**scratch))


def _work(
    shape: Shape, warpgroup: Any, hidden: Any, head: Any, tokens: Any, inverse: Any, out: Any, scratch: Scratch
) -> None:
    @pl.when(warpgroup < WARPGROUPS)
    def _() -> None:
        if not shape.interpret:
            plgpu.set_max_registers(232, action="increase")
        _multiply(shape, tokens, inverse, out, scratch)

    @pl.when(warpgroup == WARPGROUPS)
    def _() -> None:
        if not shape.interpret:
            plgpu.set_max_registers(40, action="decrease")
        _fetch(shape, hidden, head, scratch)


def _first_row(shape: Shape) -> jax.Array:
    """First row of this block of threads."""
    return (lax.axis_index("rows") * CLUSTER + lax.axis_index("pair")) * shape.block_rows


def _column(shape: Shape, block: Any) -> tuple[Any, Any]:
    """First column of a tile of this split, and the first that is in no earlier tile."""
    own = (lax.axis_index("split") * shape.vocab_blocks + block) * shape.columns
    return jnp.minimum(own, shape.vocab - shape.columns), own


def _fetch(shape: Shape, hidden: Any, head: Any, scratch: Scratch) -> None:
    """Fills the ring: one step is a piece of this block's rows, and half a piece of the head for both blocks."""
    hidden_s, head_s, full, empty = scratch.hidden_s, scratch.head_s, scratch.full, scratch.empty
    total = shape.vocab_blocks * shape.feature_steps
    row = _first_row(shape)

    def issue(step: Any, slot: Any) -> None:
        block = lax.div(step, jnp.int32(shape.feature_steps))
        feature = pl.ds(lax.rem(step, jnp.int32(shape.feature_steps)) * shape.features, shape.features)
        column = pl.ds(_column(shape, block)[0], shape.columns)
        plgpu.copy_gmem_to_smem(hidden.at[pl.ds(row, shape.block_rows), feature], hidden_s.at[slot], full.at[slot])
        source = head.at[column, feature] if shape.layout == "vd" else head.at[feature, column]
        plgpu.copy_gmem_to_smem(source, head_s.at[slot], full.at[slot], collective_axes="pair")

    for step in range(min(shape.stages, total)):
        issue(jnp.int32(step), step)

    def refill(step: Any, _: None) -> None:
        slot = lax.rem(step, jnp.int32(shape.stages))
        plgpu.barrier_wait(empty.at[slot])  # of both blocks: the copy writes into both
        issue(step + shape.stages, slot)

    lax.fori_loop(0, total - shape.stages, refill, None)

    # No block may leave while the other still arrives at its barriers, or copies into its memory.
    def drain(step: Any, _: None) -> None:
        plgpu.barrier_wait(empty.at[lax.rem(step, jnp.int32(shape.stages))])

    lax.fori_loop(max(0, total - shape.stages), total, drain, None)


def _multiply(shape: Shape, tokens: Any, inverse: Any, out: Any, scratch: Scratch) -> None:
    """The statistics of a warpgroup's rows over its split of the vocabulary."""
    warpgroup, split = lax.axis_index("warpgroup"), lax.axis_index("split")
    mine = pl.ds(_first_row(shape) + warpgroup * shape.rows, shape.rows)
    ready = scratch.rows_ready.at[warpgroup]
    plgpu.copy_gmem_to_smem(tokens.at[mine], scratch.tokens_s.at[warpgroup], ready)
    plgpu.copy_gmem_to_smem(inverse.at[mine], scratch.inverse_s.at[warpgroup], ready)
    plgpu.barrier_wait(ready)
    token, scale = scratch.tokens_s[warpgroup], scratch.inverse_s[warpgroup]

    def one_block(block: Any, stats: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return _merge(shape, block, stats, _logits(shape, scratch, warpgroup, block, scale), token)

    zeros = jnp.zeros((shape.rows,), jnp.float32)
    start = (jnp.full((shape.rows,), MASKED, jnp.float32), *[zeros] * (shape.statistics - 1))
    stats = lax.fori_loop(0, shape.vocab_blocks, one_block, start)
    for i, x in enumerate(stats):
        scratch.out_s[warpgroup, i] = x
    plgpu.commit_smem()
    for i in range(shape.statistics):
        plgpu.copy_smem_to_gmem(scratch.out_s.at[warpgroup, i], out.at[i, split, mine])
    plgpu.wait_smem_to_gmem(0)


def _wide(shape: Shape, rows: jax.Array) -> jax.Array:
    """Row values broadcast to a tile."""
    return lax.broadcast_in_dim(rows, (shape.rows, shape.columns), [0])


def _logits(shape: Shape, scratch: Scratch, warpgroup: Any, block: Any, scale: jax.Array) -> jax.Array:
    """A tile of a warpgroup: the products of the ring's pieces as they arrive."""

    def product(sums: Any) -> jax.Array:
        def step(k: Any, _: None) -> None:
            slot = lax.rem(block * shape.feature_steps + k, jnp.int32(shape.stages))
            plgpu.barrier_wait(scratch.full.at[slot])
            piece = scratch.head_s.at[slot]
            rows = scratch.hidden_s.at[slot, pl.ds(warpgroup * shape.rows, shape.rows)]
            plgpu.wgmma(sums, rows, piece.transpose((1, 0)) if shape.layout == "vd" else piece)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(scratch.empty.at[slot])

        lax.fori_loop(0, shape.feature_steps, step, None)
        return sums[...]

    raw = pl.run_scoped(product, plgpu.ACC((shape.rows, shape.columns), jnp.float32))
    if shape.softcap is not None:
        raw = shape.softcap * jnp.tanh(raw * (1.0 / shape.softcap))
    return raw * _wide(shape, scale) if shape.temperature else raw


def _merge(
    shape: Shape, block: Any, stats: tuple[jax.Array, ...], x: jax.Array, token: jax.Array
) -> tuple[jax.Array, ...]:
    """The running statistics with those of a tile."""
    top, total, target = stats[:3]
    first, own = _column(shape, block)
    column = lax.broadcasted_iota(jnp.int32, (shape.rows, shape.columns), 1) + first
    hit = column == _wide(shape, token)
    overlaps = shape.vocab < shape.splits * shape.vocab_blocks * shape.columns
    if overlaps:
        hit = hit & (column >= own)
    target = target + jnp.where(hit, x, 0.0).sum(axis=1)
    if overlaps:
        x = jnp.where(column >= own, x, MASKED)
    new_top = jnp.maximum(top, x.max(axis=1))
    rescale = jnp.exp(top - new_top)
    weights = jnp.exp(x - _wide(shape, new_top))
    total = total * rescale + weights.sum(axis=1)
    if shape.entropy:
        return new_top, total, target, stats[3] * rescale + (weights * x).sum(axis=1)
    return new_top, total, target
