"""Chances that the answers of a search are right: Venn-ABERS over several scorers (arXiv 2412.19511)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.prm import compiled

_LEAST, _MOST = 10, 2000  # answers that calibrate; the time of each chance grows with the square of their number
_BLOCK = 64  # answers at a time: one compilation, and the fits of a block stay in a cache


def check_known(known: Sequence[Mapping[str, Any]]) -> None:
    """Checks, before a search, that its results can be calibrated.

    Args:
      known: results of the same search on other problems.

    Raises:
      UserError: there are too few or too many answers among them, or all are right or all wrong.
    """
    good = _good(known)
    if not _LEAST <= len(good) <= _MOST:
        raise UserError(
            f"--venn-abers needs {_LEAST} to {_MOST} answers in --calibration, found {len(good)}: search another "
            "number of problems for it"
        )
    if len(set(good.tolist())) < 2:
        raise UserError(
            f"--venn-abers needs right and wrong answers in --calibration, but all {len(good)} are "
            f"{'right' if good[0] else 'wrong'}: search more problems for it, whose answers are known"
        )


def with_chances(
    lines: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], scorers: Sequence[str]
) -> list[dict[str, Any]]:
    """Adds to each result how likely its answer is right, by every scorer and by all of them.

    Isotonic regression of "correct" on a scorer's values is fitted twice for each answer, which joins `known` once as a
    wrong and once as a right one. The two fits at its value are the interval [p0, p1], and p1 / (1 - p0 + p1) is the
    chance. The interval supposes that both searches are the same and their problems are exchangeable; it is wide where
    few known answers have similar values. The mean over several scorers has no such guarantee.

    Args:
      lines: results of a search.
      known: those of the same search on other problems, whose "correct" is used; see `check_known`.
      scorers: fields of the results that order answers, among `search_selection.SCORERS`.

    Returns:
      The results with "chance", the mean over the scorers, and "venn_abers": {scorer: {"interval": [p0, p1],
      "chance"}}; both None for a problem without an answer.

    Raises:
      UserError: see `check_known`.
    """
    check_known(known)
    good = _good(known).astype(np.float32)
    answered = [place for place, line in enumerate(lines) if line["answer"] is not None]
    found: list[dict[str, Any]] = [{**line, "chance": None, "venn_abers": None} for line in lines]
    for place in answered:
        found[place]["venn_abers"] = {}
    for name in scorers:
        values = np.asarray([line[name] for line in known if line["answer"] is not None], np.float32)
        tests = np.asarray([lines[place][name] for place in answered], np.float32)
        for place, (lower, upper) in zip(answered, _intervals(values, good, tests).tolist(), strict=True):
            chance = upper / (1 - lower + upper)
            found[place]["venn_abers"][name] = {"interval": [lower, upper], "chance": chance}
    for place in answered:
        found[place]["chance"] = float(np.mean([one["chance"] for one in found[place]["venn_abers"].values()]))
    return found


def chances_row(lines: Sequence[Mapping[str, Any]]) -> str:
    """The expected accuracy of results with chances, where a missing answer is wrong, and the mean interval's width."""
    expected = sum(line["chance"] or 0.0 for line in lines) / len(lines)
    intervals = [one["interval"] for line in lines for one in (line["venn_abers"] or {}).values()]
    width = float(np.mean([upper - lower for lower, upper in intervals])) if intervals else 0.0
    return f"{'expected accuracy':23s}{expected:.4f}, from intervals {width:.3f} wide on average (--venn-abers)"


def _good(known: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.asarray([line["correct"] > 0.5 for line in known if line["answer"] is not None], bool)


def _intervals(values: np.ndarray, good: np.ndarray, tests: np.ndarray) -> np.ndarray:
    """[M, 2]: (p0, p1) of each of the values `tests` [M]; equal values are fitted once."""
    distinct, which = np.unique(tests, return_inverse=True)
    blocks = [np.zeros((2, 0), np.float32)]
    for start in range(0, len(distinct), _BLOCK):
        own = distinct[start : start + _BLOCK]
        bounds = compiled.venn_abers(values, good, np.resize(own, _BLOCK))
        blocks.append(np.stack([np.asarray(bound)[: len(own)] for bound in bounds]))
    return np.clip(np.concatenate(blocks, 1).T, 0.0, 1.0)[which].astype(np.float64)
