"""Blocks of the vocabulary times many tokens: the least memory, and the fastest on a CPU."""

from typing import Any

from prm_jax.pallas.linear_logprob import tiles
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec, Wanted, vocab_size

_COLUMNS = 2048
_LOGITS = 1 << 24  # the token block follows from this many logits a tile


def blocks(spec: Spec, inputs: Inputs) -> tuple[int, int]:
    """(token block, vocab block)."""
    columns = spec.vocab_block or min(_COLUMNS, vocab_size(spec, inputs.head))
    if spec.residual == "logits":
        columns = vocab_size(spec, inputs.head)
    return spec.token_block or max(1, _LOGITS // columns), columns


def refusal(spec: Spec, inputs: Inputs) -> str | None:
    """See ``problem.Backend``."""
    del spec, inputs
    return None


def forward(spec: Spec, inputs: Inputs, *, keep: bool) -> tuple[Outputs, Any]:
    """See ``problem.Backend``."""
    token_block, vocab_block = blocks(spec, inputs)
    kept = inputs.hidden.dtype if keep else None
    return tiles.forward(spec, inputs, token_block=token_block, vocab_block=vocab_block, keep=kept)


def backward(
    spec: Spec, inputs: Inputs, outputs: Outputs, kept: Any, cotangents: Outputs, wanted: Wanted
) -> Gradients:
    """See ``problem.Backend``."""
    token_block, vocab_block = blocks(spec, inputs)
    return tiles.backward(
        spec, inputs, outputs, kept, cotangents, wanted, token_block=token_block, vocab_block=vocab_block
    )
