"""The contract between the op and its backends: what is computed, and what a backend has to provide."""

import dataclasses
from typing import NamedTuple, Protocol

import jax


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a call.

    The logits are ``l[t, v] = softcap * tanh((hidden[t] . head[v] + bias[v]) / softcap) / temperature[t]``, with
    the cap left out when it is None.

    Attributes:
      softcap: positive, or None.
      entropy: whether the entropy of every row is wanted.
      token_block: rows of the logits that may exist at once; None leaves it to the backend.
      vocab_block: columns of the logits that may exist at once; None leaves it to the backend.
    """

    softcap: float | None = None
    entropy: bool = False
    token_block: int | None = None
    vocab_block: int | None = None


class Inputs(NamedTuple):
    """The arrays of a call; every token counts (masks are applied outside)."""

    hidden: jax.Array  # [T, D] float32, bfloat16 or float16
    head: jax.Array  # [V, D] any of these dtypes, cast to hidden's in pieces
    bias: jax.Array | None  # [V]
    inverse_temperature: jax.Array | None  # [T] float32
    tokens: jax.Array  # [T] int32


class Outputs(NamedTuple):
    """Row statistics, float32."""

    lse: jax.Array  # [T] logsumexp_v l[t, v]
    target: jax.Array  # [T] l[t, tokens[t]]; NaN for a token outside [0, V)
    entropy: jax.Array | None  # [T] lse - sum_v softmax(l)[t, v] l[t, v]


class Gradients(NamedTuple):
    """Cotangents of ``Inputs``, each in its array's dtype; None where nothing was asked for."""

    hidden: jax.Array | None
    head: jax.Array | None
    bias: jax.Array | None


class Backend(Protocol):
    """What a backend's module provides."""

    def forward(self, spec: Spec, inputs: Inputs) -> Outputs:
        """The row statistics."""

    def backward(
        self, spec: Spec, inputs: Inputs, outputs: Outputs, cotangents: Outputs, wanted: tuple[bool, bool, bool]
    ) -> Gradients:
        """The gradients that are ``wanted`` (of hidden, head, bias), from the inputs and ``forward``'s outputs."""
