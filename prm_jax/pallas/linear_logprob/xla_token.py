"""Blocks of tokens times the whole vocabulary: large matrix products, at their best on accelerators."""

import jax

from prm_jax.pallas.linear_logprob import tiles
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec

_ROWS = 512  # on a CPU; less does not save memory that matters, more falls out of its caches
_ROWS_ACCELERATOR = 2048  # fewer would read the head more often than the matrix units can hide
_LOGITS = 1 << 22  # with a small vocabulary, blocks grow to this many logits


def blocks(spec: Spec, inputs: Inputs) -> tuple[int, int]:
    """(token block, vocab block)."""
    vocab = inputs.head.shape[0]
    rows = _ROWS if jax.default_backend() == "cpu" else _ROWS_ACCELERATOR
    return spec.token_block or max(rows, _LOGITS // vocab), spec.vocab_block or vocab


def forward(spec: Spec, inputs: Inputs) -> Outputs:
    """See ``problem.Backend``."""
    token_block, vocab_block = blocks(spec, inputs)
    return tiles.forward(spec, inputs, token_block=token_block, vocab_block=vocab_block)


def backward(
    spec: Spec, inputs: Inputs, outputs: Outputs, cotangents: Outputs, wanted: tuple[bool, bool, bool]
) -> Gradients:
    """See ``problem.Backend``."""
    token_block, vocab_block = blocks(spec, inputs)
    return tiles.backward(
        spec, inputs, outputs, cotangents, wanted, token_block=token_block, vocab_block=vocab_block
    )
