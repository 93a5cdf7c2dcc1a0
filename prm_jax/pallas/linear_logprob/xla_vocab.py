"""Blocks of the vocabulary times many tokens: the least memory, and the fastest on a CPU."""

from prm_jax.pallas.linear_logprob import tiles
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec

_COLUMNS = 4096
_LOGITS = 1 << 24  # the token block follows from this many logits a tile


def blocks(spec: Spec, inputs: Inputs) -> tuple[int, int]:
    """(token block, vocab block)."""
    columns = spec.vocab_block or min(_COLUMNS, inputs.head.shape[0])
    return spec.token_block or max(1, _LOGITS // columns), columns


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
