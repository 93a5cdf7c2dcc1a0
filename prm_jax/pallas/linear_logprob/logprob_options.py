"""How the op is computed, apart from what it computes: one object for every entry point."""

import dataclasses

from prm_jax.pallas.linear_logprob.problem import LAYOUTS, RESIDUALS, Layout, Residual, Target


@dataclasses.dataclass(frozen=True)
class LogprobOptions:
    """Options of ``linear_logprob`` and its relatives; static under jit.

    Attributes:
      implementation: "xla_vocab", "xla_token", "mosaic_tpu" or "mosaic_gpu"; None chooses by platform.
      entropy: also return the entropy of every row.
      head_layout: "vd" for a head [V, D], "dv" for [D, V].
      residual: "recompute" makes the logits again in the backward pass; "logits" keeps all T x V log-probs in hidden's
        dtype for it, a quarter less work where that much memory is available (XLA implementations).
      compact: sort rows with a True mask to the front and compute only those: work in proportion to their number, the
        same results. Rows should be on one device (no mesh, or under ``shard_map``): sorting moves rows between
        devices.
      vocab_axis: under ``shard_map``, the mesh axis over which V of the head (and of the bias) is split. ``tokens``
        are ids of the whole vocabulary; results are equal on all devices of the axis.
      gather_axes: under ``shard_map``, the axes over which D of the head is split. It is gathered one block of the
        vocabulary at a time, forward and backward (XLA implementations).
      target: the device to compile for; None is this machine's default device.
      token_block: rows of logits at a time; None leaves it to the implementation.
      vocab_block: columns of logits at a time; None leaves it to the implementation.

    Raises:
      ValueError: for a layout, residual or block that does not exist.
    """

    implementation: str | None = None
    entropy: bool = False
    head_layout: Layout = "vd"
    residual: Residual = "recompute"
    compact: bool = False
    vocab_axis: str | None = None
    gather_axes: tuple[str, ...] = ()
    target: Target | None = None
    token_block: int | None = None
    vocab_block: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("head_layout", LAYOUTS), ("residual", RESIDUALS)):
            if getattr(self, name) not in values:
                known = ", ".join(map(repr, values))
                raise ValueError(f"{name} must be one of {known}, found {getattr(self, name)!r}")
        for name in ("token_block", "vocab_block"):
            block = getattr(self, name)
            if block is not None and block < 1:
                raise ValueError(f"{name} must be positive, found {block}")

    def refuse(self, caller: str, **reasons: str) -> None:
        """Raises ValueError when an option named in ``reasons`` is set, which ``caller`` cannot follow."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in reasons and value != field.default:
                raise ValueError(f"{caller} cannot use {field.name}={value!r}: {reasons[field.name]}")
