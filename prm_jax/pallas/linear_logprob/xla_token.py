"""Blocks of tokens times the whole vocabulary: large matrix products, at their best on accelerators."""

from typing import Any

from prm_jax.pallas.linear_logprob import tiles
from prm_jax.pallas.linear_logprob.problem import Gradients, Inputs, Outputs, Spec, Wanted, vocab_size

_ROWS = 512  # on a CPU; fewer save little memory, more do not fit its caches
_ROWS_ACCELERATOR = 2048  # fewer would read the head so often that its bandwidth limits the products
_LOGITS = 1 << 22  # with a small vocabulary, blocks grow to this many logits


def blocks(spec: Spec, inputs: Inputs) -> tuple[int, int]:
    """(token block, vocab block)."""
    vocab = vocab_size(spec, inputs.head)
    rows = _ROWS if spec.target.platform == "cpu" else _ROWS_ACCELERATOR
    return spec.token_block or max(rows, _LOGITS // vocab), spec.vocab_block or vocab


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
