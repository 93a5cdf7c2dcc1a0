"""The contract between the op and its backends: what is computed, and what a backend provides."""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax

Layout = Literal["vd", "dv"]
Residual = Literal["recompute", "logits"]
LAYOUTS: tuple[str, ...] = ("vd", "dv")
RESIDUALS: tuple[str, ...] = ("recompute", "logits")


@dataclasses.dataclass(frozen=True)
class Target:
    """The device that a call is compiled for, where that is not this machine's default device.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      device_kind: as in ``jax.Device.device_kind`` ("TPU v5e", "NVIDIA H100 80GB HBM3"); finds the tuned blocks.
      interpret: run a kernel's program on the CPU, slowly and exactly, to test it.
    """

    platform: str
    device_kind: str = ""
    interpret: bool = False


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a call.

    The logits are ``l[t, v] = softcap * tanh((hidden[t] . head[v] + bias[v]) / softcap) / temperature[t]``, with
    the cap left out when it is None.

    Attributes:
      softcap: positive, or None.
      entropy: whether the entropy of every row is wanted.
      head_layout: "vd" for a head [V, D], "dv" for [D, V].
      residual: what the backward pass gets in addition to the outputs: nothing ("recompute") or all log-probs
        ("logits").
      gather_axes: mesh axes over which D of the head is split; the head is gathered piece by piece.
      target: the device.
      token_block: rows of the logits that may exist at once; None leaves it to the backend.
      vocab_block: columns of the logits that may exist at once; None leaves it to the backend.
    """

    softcap: float | None = None
    entropy: bool = False
    head_layout: Layout = "vd"
    residual: Residual = "recompute"
    gather_axes: tuple[str, ...] = ()
    target: Target = Target("cpu")
    token_block: int | None = None
    vocab_block: int | None = None

    @property
    def vocab_axis(self) -> int:
        """The head's axis of the vocabulary."""
        return self.head_layout.index("v")


class Inputs(NamedTuple):
    """The arrays of a call; masks are applied outside."""

    hidden: jax.Array  # [T, D] float32, bfloat16 or float16
    head: jax.Array  # [V, D] or [D, V], any of these dtypes, cast to hidden's in pieces
    bias: jax.Array | None  # [V]
    inverse_temperature: jax.Array | None  # [T] float32
    tokens: jax.Array  # [T] int32
    valid: jax.Array | None = None  # [] int32: only so many rows matter, the first ones; None: all


class Outputs(NamedTuple):
    """Row statistics, float32; undefined for rows past ``Inputs.valid``."""

    lse: jax.Array  # [T] logsumexp_v l[t, v]
    target: jax.Array  # [T] l[t, tokens[t]]; NaN for a token outside [0, V)
    entropy: jax.Array | None  # [T] lse - sum_v softmax(l)[t, v] l[t, v]


class Gradients(NamedTuple):
    """Cotangents of ``Inputs``, each in its array's dtype; None where not wanted."""

    hidden: jax.Array | None  # zero past ``Inputs.valid``
    head: jax.Array | None
    bias: jax.Array | None


Wanted = tuple[bool, bool, bool]
"""Whether the gradients of hidden, head and bias are wanted."""


class Backend(Protocol):
    """What a backend's module provides."""

    def refusal(self, spec: Spec, inputs: Inputs) -> str | None:
        """The reason why it cannot do this call; None when it can."""

    def forward(self, spec: Spec, inputs: Inputs, *, keep: bool) -> tuple[Outputs, Any]:
        """The row statistics, and residuals of ``backward`` (only for ``keep``, else None)."""

    def backward(
        self, spec: Spec, inputs: Inputs, outputs: Outputs, kept: Any, cotangents: Outputs, wanted: Wanted
    ) -> Gradients:
        """The gradients that are ``wanted``; a cotangent of None is zero."""


def vocab_size(spec: Spec, head: jax.Array) -> int:
    """V of a head."""
    return head.shape[spec.vocab_axis]
