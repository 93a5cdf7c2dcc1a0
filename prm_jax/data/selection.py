"""Choosing prompts by their solve rate: those that are always or never solved give no gradient.

Host-side and pure NumPy, between generation and the update; PRIME, arXiv 2502.01456, section 3.
"""

import dataclasses
from typing import Literal

import numpy as np

from prm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which prompts of a batch are used.

    Attributes:
      index: [K] int, prompts to use, in order.
      passing: [K] bool, False for a prompt that only fills the shape; losses mask it out.
      surplus: [M] int, passing prompts that were not needed; to be put back.
      missing: number of passing prompts still wanted.
    """

    index: np.ndarray
    passing: np.ndarray
    surplus: np.ndarray
    missing: int


def solve_rate_passes(
    outcome: np.ndarray,
    *,
    low: float = 0.2,
    high: float = 0.8,
    truncated: np.ndarray | None = None,
    usable: np.ndarray | None = None,
) -> np.ndarray:
    """Which prompts have low <= mean outcome <= high.

    Both bounds are inclusive, and both sides are compared in float32, so that 4 of 5 passes 0.8.

    Args:
      outcome: [P, G] in [0, 1].
      low, high: the bounds, 0 <= low <= high <= 1; every prompt passes (0, 1).
      truncated: [P, G] bool; where given, a prompt with a truncated response fails.
      usable: [P, G] bool, False where the verifier gave ``"error"``: those responses count in neither the
        mean nor its denominator, and a prompt with fewer than two usable ones fails.

    Returns:
      [P] bool; False for a prompt without responses (G = 0).
    """
    if not 0.0 <= low <= high <= 1.0:
        raise UserError(f"the solve-rate filter needs 0 <= low <= high <= 1, found low={low} and high={high}")
    outcome = np.asarray(outcome, np.float64)
    if outcome.ndim != 2:
        raise ValueError(f"outcome must be [P, G], found shape {outcome.shape}")
    counted = np.ones(outcome.shape, bool) if usable is None else np.asarray(usable, bool)
    count = counted.sum(axis=1)
    rate = (np.where(counted, outcome, 0.0).sum(axis=1) / np.maximum(count, 1)).astype(np.float32)
    passes = (rate >= np.float32(low)) & (rate <= np.float32(high)) & (count > 0)
    if usable is not None:
        passes &= count >= 2
    if truncated is not None:
        passes &= ~np.asarray(truncated, bool).any(axis=1)
    return passes


def select_by_solve_rate(
    outcome: np.ndarray,
    *,
    wanted: int,
    mode: Literal["resample", "oversample"] = "resample",
    low: float = 0.2,
    high: float = 0.8,
    truncated: np.ndarray | None = None,
    usable: np.ndarray | None = None,
) -> Selection:
    """Chooses ``wanted`` prompts by solve rate, in one of two modes.

    ``"resample"``: passing prompts only, in order; the caller draws more prompts until ``missing`` is 0, and puts the
    surplus back. ``"oversample"``: the batch was drawn larger than wanted; passing prompts come first and failing ones
    after them, both in order (a stable sort), cut to ``wanted``: the shape is static, ``missing`` is always 0, and
    ``passing`` distinguishes the two.

    Args:
      outcome: [P, G] in [0, 1].
      wanted: number of prompts; at most P for ``"oversample"``.
      mode: one of the two.
      low, high, truncated, usable: as for ``solve_rate_passes``.

    Returns:
      A ``Selection``.
    """
    passes = solve_rate_passes(outcome, low=low, high=high, truncated=truncated, usable=usable)
    if mode == "oversample":
        if wanted > len(passes):
            raise UserError(f"oversampling needs at least {wanted} prompts in the batch, found {len(passes)}")
        order = np.argsort(~passes, kind="stable")
        index, rest = order[:wanted], order[wanted:]
        return Selection(index, passes[index], rest[passes[rest]], 0)
    if mode != "resample":
        raise UserError(f"unknown mode of filtering prompts {mode!r}; expected 'resample' or 'oversample'")
    (found,) = np.nonzero(passes)
    index = found[:wanted]
    return Selection(index, np.ones(len(index), bool), found[wanted:], wanted - len(index))
