"""Pallas kernels for TPUs: one forward pass, one backward pass for all gradients."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from prm_jax.pallas.linear_logprob import mosaic_tpu_kernels as kernels
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec, Wanted, vocab_size
from prm_jax.pallas.linear_logprob.tuning import Blocks, tpu_blocks, tpu_memory
from prm_jax.varying import mark, varying_axes

_LEAST_TOKEN_BLOCKS = 4


def refusal(spec: Spec, inputs: Inputs) -> str | None:
    """See ``problem.Backend``."""
    for name, array in (("hidden", inputs.hidden), ("head", inputs.head)):
        if array.dtype == jnp.float16:
            return f"{name} is float16, which TPUs do not multiply; use bfloat16"
    if spec.residual != "recompute":
        return f"residual={spec.residual!r}; its backward pass makes the logits again"
    if spec.gather_axes:
        return "gather_axes; the head must be whole in D"
    if tpu_blocks(spec, inputs, "backward") is None:
        return f"D={inputs.hidden.shape[1]} features of a block do not fit into {spec.target.device_kind}'s VMEM"
    return None


def forward(spec: Spec, inputs: Inputs, *, keep: bool) -> tuple[Outputs, Any]:
    """See ``problem.Backend``."""
    del keep  # refused
    blocks = _blocks(spec, inputs, "forward")
    shape = _shape(spec, inputs, blocks)
    count, vocab = inputs.hidden.shape[0], shape.vocab
    rows, lanes = _rows(inputs, None, None), (blocks.tokens, kernels.LANES)
    tokens = pl.cdiv(count if inputs.valid is None else jnp.maximum(inputs.valid, 1), blocks.tokens)
    launch = _Launch(
        body=functools.partial(kernels.forward_body, shape),
        name="linear_logprob_forward",
        grid=(tokens, pl.cdiv(vocab, blocks.vocab)),
        semantics=("parallel", "arbitrary"),
        token_dimension=0,
        outputs=[((count, kernels.LANES), jnp.float32, pl.BlockSpec(lanes, lambda i, j: (i, 0)))],
        scratch=[lanes] * 4,
    )
    out = _call(launch, spec, inputs, blocks, rows)[0]
    known = (inputs.tokens >= 0) & (inputs.tokens < vocab)
    entropy = out[:, 2] if spec.entropy else None
    return Outputs(out[:, 0], jnp.where(known, out[:, 1], jnp.nan), entropy), None


def backward(
    spec: Spec, inputs: Inputs, outputs: Outputs, kept: Any, cotangents: Outputs, wanted: Wanted
) -> Gradients:
    """See ``problem.Backend``."""
    del kept
    want_hidden, want_head, want_bias = wanted
    count = inputs.hidden.shape[0]
    if inputs.valid is not None:  # rows that the forward pass never visited are undefined
        inside = jnp.arange(count) < inputs.valid
        outputs = jax.tree.map(lambda x: jnp.where(inside, x, 0.0), outputs)
    rows = _rows(inputs, outputs, cotangents)
    if want_head or want_bias:
        d_hidden, d_head, d_bias = _all_gradients(spec, inputs, rows, want_hidden)
    else:
        d_hidden, d_head, d_bias = _hidden_gradient(spec, inputs, rows), None, None
    return Gradients(
        d_hidden if want_hidden else None,
        d_head if want_head else None,
        d_bias[0].astype(inputs.bias.dtype) if want_bias and inputs.bias is not None else None,
    )


def _all_gradients(
    spec: Spec, inputs: Inputs, rows: jax.Array, want_hidden: bool
) -> tuple[jax.Array | None, jax.Array, Any]:
    """The vocabulary is the outer loop: a block of the head's gradient stays in VMEM until it is complete, while
    hidden's passes through once for each block of the vocabulary, read, added to, and written.

    A block of hidden's gradient is read again after one round over the tokens. Its last write has completed by then
    only if the round is long enough: the next read starts one step early, a write may finish one step late. Hence at
    least four blocks of tokens.
    """
    blocks = _blocks(spec, inputs, "backward")
    count, width = inputs.hidden.shape
    missing = max(-count % blocks.tokens, _LEAST_TOKEN_BLOCKS * blocks.tokens - count)
    inputs, rows = _padded(inputs, missing), jnp.pad(rows, ((0, missing), (0, 0)))
    shape = _shape(spec, inputs, blocks)
    total = count + missing
    tokens: Any = total // blocks.tokens
    if inputs.valid is not None:
        tokens = jnp.maximum(pl.cdiv(inputs.valid, blocks.tokens), _LEAST_TOKEN_BLOCKS)
    vd = spec.head_layout == "vd"
    hidden_spec = pl.BlockSpec((blocks.tokens, width), lambda j, i: (i, 0))
    block = (blocks.vocab, width) if vd else (width, blocks.vocab)
    outputs = [
        (inputs.head.shape, inputs.head.dtype, pl.BlockSpec(block, lambda j, i: (j, 0) if vd else (0, j))),
        ((1, shape.vocab), jnp.float32, pl.BlockSpec((1, blocks.vocab), lambda j, i: (0, j))),
    ]
    if want_hidden:
        outputs.insert(0, ((total, width), jnp.float32, hidden_spec))
    launch = _Launch(
        body=functools.partial(kernels.backward_body, shape, want_hidden),
        name="linear_logprob_backward",
        grid=(pl.cdiv(shape.vocab, blocks.vocab), tokens),
        semantics=("arbitrary", "arbitrary"),
        token_dimension=1,
        outputs=outputs,
        scratch=[block, (1, blocks.vocab)],
        sums=[(jnp.zeros((total, width), jnp.float32), hidden_spec)] if want_hidden else [],
    )
    results = _call(launch, spec, inputs, blocks, rows)
    if not want_hidden:
        return None, results[0], results[1]
    return results[0][:count].astype(inputs.hidden.dtype), results[1], results[2]


def _hidden_gradient(spec: Spec, inputs: Inputs, rows: jax.Array) -> jax.Array:
    """With a frozen head the tokens are the outer loop, and hidden's gradient never leaves VMEM unfinished."""
    blocks = _blocks(spec, inputs, "backward")
    shape = _shape(spec, inputs, blocks)
    count, width = inputs.hidden.shape
    tokens = pl.cdiv(count if inputs.valid is None else jnp.maximum(inputs.valid, 1), blocks.tokens)
    spec_out = pl.BlockSpec((blocks.tokens, width), lambda i, j: (i, 0))
    launch = _Launch(
        body=functools.partial(kernels.hidden_body, shape),
        name="linear_logprob_backward_hidden",
        grid=(tokens, pl.cdiv(shape.vocab, blocks.vocab)),
        semantics=("parallel", "arbitrary"),
        token_dimension=0,
        outputs=[((count, width), inputs.hidden.dtype, spec_out)],
        scratch=[(blocks.tokens, width)],
    )
    d_hidden = _call(launch, spec, inputs, blocks, rows)[0]
    if inputs.valid is None:
        return d_hidden
    return jnp.where((jnp.arange(count) < inputs.valid)[:, None], d_hidden, 0)


class _Launch(NamedTuple):
    """A kernel and its grid.

    Attributes:
      body: the kernel.
      name: of the kernel, in profiles.
      grid: blocks of tokens and of the vocabulary, in the order of ``token_dimension``.
      semantics: of the grid's dimensions.
      token_dimension: 0 when tokens are the outer loop, 1 when the vocabulary is.
      outputs: (shape, dtype, block) of each.
      scratch: shapes of float32 buffers.
      sums: operands that alias the first outputs.
    """

    body: Any
    name: str
    grid: tuple[Any, Any]
    semantics: tuple[Any, Any]
    token_dimension: int
    outputs: Sequence[tuple[tuple[int, ...], Any, pl.BlockSpec]]
    scratch: Sequence[tuple[int, ...]]
    sums: Sequence[tuple[jax.Array, pl.BlockSpec]] = ()


def _call(launch: _Launch, spec: Spec, inputs: Inputs, blocks: Blocks, rows: jax.Array) -> tuple[jax.Array, ...]:
    """Runs a kernel over a grid of token and vocab blocks."""
    width, vd = inputs.hidden.shape[1], spec.head_layout == "vd"

    def at(place: Any) -> Any:  # index maps in terms of (token block, vocab block)
        return (lambda i, j: place(i, j)) if launch.token_dimension == 0 else (lambda j, i: place(i, j))

    column = pl.BlockSpec((blocks.tokens, 1), at(lambda i, j: (i, 0)))
    operands: list[Any] = [inputs.tokens[:, None], rows, inputs.hidden, inputs.head]
    in_specs = [
        column,
        pl.BlockSpec((blocks.tokens, kernels.ROWS), at(lambda i, j: (i, 0))),
        pl.BlockSpec((blocks.tokens, width), at(lambda i, j: (i, 0))),
        pl.BlockSpec((blocks.vocab, width), at(lambda i, j: (j, 0)))
        if vd
        else pl.BlockSpec((width, blocks.vocab), at(lambda i, j: (0, j))),
    ]
    if inputs.bias is not None:
        operands.append(inputs.bias.astype(jnp.float32)[None, :])
        in_specs.append(pl.BlockSpec((1, blocks.vocab), at(lambda i, j: (0, j))))
    aliases = {}
    axes = varying_axes(operands)
    for k, (array, array_spec) in enumerate(launch.sums):
        aliases[len(operands)] = k
        operands.append(mark(axes)(array))
        in_specs.append(array_spec)
    kind = jax.typeof(operands[0]).manual_axis_type
    return pl.pallas_call(
        launch.body,
        grid=launch.grid,
        in_specs=in_specs,
        out_specs=[out[2] for out in launch.outputs],
        out_shape=[jax.ShapeDtypeStruct(s, dtype, manual_axis_type=kind) for s, dtype, _ in launch.outputs],
        scratch_shapes=[pltpu.VMEM(s, jnp.float32) for s in launch.scratch],
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            # The interpreter shuffles parallel dimensions and cannot do so for one of unknown size.
            dimension_semantics=("arbitrary",) * 2 if spec.target.interpret else launch.semantics,
            vmem_limit_bytes=tpu_memory(spec.target.device_kind),
        ),
        interpret=pltpu.InterpretParams() if spec.target.interpret else False,
        name=launch.name,
    )(*operands)


def _blocks(spec: Spec, inputs: Inputs, which: str) -> Blocks:
    blocks = tpu_blocks(spec, inputs, which)
    assert blocks is not None, "refused before"
    return blocks


def _shape(spec: Spec, inputs: Inputs, blocks: Blocks) -> kernels.Shape:
    return kernels.Shape(
        vocab=vocab_size(spec, inputs.head),
        token_block=blocks.tokens,
        vocab_block=blocks.vocab,
        row_piece=blocks.row_piece,
        column_piece=blocks.column_piece,
        layout=spec.head_layout,
        softcap=spec.softcap,
        entropy=spec.entropy,
        bias=inputs.bias is not None,
        temperature=inputs.inverse_temperature is not None,
    )


def _rows(inputs: Inputs, outputs: Outputs | None, cotangents: Outputs | None) -> jax.Array:
    """The scalars of each row as [T, 8] float32; what is None is zero."""
    zeros = jnp.zeros(inputs.tokens.shape, jnp.float32)
    zeros = mark(varying_axes(inputs))(zeros)
    columns = [zeros] * kernels.ROWS
    if outputs is not None and cotangents is not None:
        columns[kernels.ROW_LSE] = outputs.lse
        for place, x in (
            (kernels.ROW_ENTROPY, outputs.entropy),
            (kernels.ROW_G_LSE, cotangents.lse),
            (kernels.ROW_G_TARGET, cotangents.target),
            (kernels.ROW_G_ENTROPY, cotangents.entropy),
        ):
            columns[place] = zeros if x is None else x
    if inputs.inverse_temperature is not None:
        columns[kernels.ROW_INVERSE] = inputs.inverse_temperature
    return jnp.stack(columns, axis=1)


def _padded(inputs: Inputs, missing: int) -> Inputs:
    """With rows of zeros at the end: rows past T would are undefined, and reach the head's gradient."""
    if not missing:
        return inputs
    return inputs._replace(
        hidden=jnp.pad(inputs.hidden, ((0, missing), (0, 0))),
        tokens=jnp.pad(inputs.tokens, (0, missing)),
    )
