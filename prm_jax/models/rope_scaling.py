"""Scaling of rotary frequencies beyond the pretraining context, as named in Hugging Face configs."""

import dataclasses
from typing import Literal

from prm_jax.errors import UserError

RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
_ROPE_KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the pretraining context; fields as in Hugging Face configs.

    ``linear`` divides the frequencies by ``factor``.  ``llama3`` divides only wavelengths longer than
    ``original_max_position_embeddings / low_freq_factor`` and interpolates up to ``/ high_freq_factor``.
    ``yarn`` (arXiv:2309.00071) blends by the number of rotations between ``beta_fast`` and ``beta_slow`` and
    multiplies cosines and sines by ``attention_factor``.  ``dynamic`` leaves positions within
    ``max_position_embeddings`` as they are; longer rows are refused, because a token's rotation
    would then depend on the length generated so far.  ``longrope`` (arXiv:2402.13753) divides each frequency by its
    entry of ``short_factor``, and multiplies cosines and sines by ``attention_factor``; rows longer than
    ``original_max_position_embeddings``, whose frequencies ``long_factor`` would divide, are refused for the same
    reason.
    """

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _ROPE_KINDS:
            raise UserError(f"rope_scaling: unknown kind {self.kind!r}; known: {', '.join(_ROPE_KINDS)}")
        if not self.factor >= 1.0:
            raise UserError(f"rope_scaling.factor must be at least 1, found {self.factor}")
        if self.kind == "llama3" and not self.original_max_position_embeddings:
            raise UserError("rope_scaling: llama3 needs original_max_position_embeddings")
        if self.kind == "longrope" and not (self.original_max_position_embeddings and self.short_factor):
            raise UserError("rope_scaling: longrope needs original_max_position_embeddings and short_factor")
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor:
            raise UserError(
                "rope_scaling: high_freq_factor must exceed low_freq_factor, "
                f"found {self.high_freq_factor} and {self.low_freq_factor}"
            )
