"""Which answers of a search to trust: selection with few false discoveries (OptCS, arXiv 2411.17983)."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.errors import UserError
from prm_jax.prm import compiled

SCORERS = ("score", "agreement")
"""What an answer may be trusted for: its candidate's score, the share of candidates that give it."""
_LEAST, _MOST = 10, 4000  # answers; the time of the selection grows with the square of their number


def read_known(path: pathlib.Path) -> list[dict[str, Any]]:
    """The results of an earlier search whose answers were checked.

    Raises:
      UserError: the file is missing, or not one that ``search --out`` writes.
    """
    try:
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        fits = "settings" in head and all({"id", "correct", "answer", *SCORERS} <= line.keys() for line in lines)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--calibration {path}: cannot read results of a search from it ({error})") from error
    if not fits:
        raise UserError(
            f"--calibration {path} does not hold what prm-jax search --out writes: an id, an answer, whether it is "
            f"correct, and {' and '.join(SCORERS)}"
        )
    return lines


def check_other_problems(ids: Sequence[str], known: Sequence[Mapping[str, Any]]) -> None:
    """Checks, before a search, that its problems are not those that calibrate.

    Raises:
      UserError: some are.
    """
    shared = sorted(set(ids) & {line["id"] for line in known})
    if shared:
        raise UserError(
            f"--calibration has {len(shared)} of the same problems, such as {shared[0]!r}: calibrate with others "
            "(--first-problem)"
        )


def trusted_answers(
    lines: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], *, level: float, seed: int = 0
) -> dict[str, Any]:
    """Selects answers such that in expectation at most a share `level` of them is wrong.

    Each answer is judged by its score or by the agreement of the candidates, whichever selects more, without losing the
    bound. Problems without an answer are left out on both sides. The bound supposes that both searches are the same and
    their problems are exchangeable.

    Args:
      lines: results of a search.
      known: those of the same search on other problems, whose "correct" is used.
      level: in (0, 1).
      seed: of the selection.

    Returns:
      "trusted": the selected results' ids, answers and "by", the scorer; "candidates": answers to select from;
      "false_share": share of wrong ones among the selected, by their own "correct" (0 for none).

    Raises:
      UserError: a problem is on both sides, or there are too few or too many answers.
    """
    check_other_problems([line["id"] for line in lines], known)
    tests, checked = ([line for line in own if line["answer"] is not None] for own in (lines, known))
    if len(checked) < _LEAST or not 0 < len(tests) <= _MOST:
        raise UserError(
            f"--false-discovery needs at least {_LEAST} answers to calibrate with, and 1 to {_MOST} to select from; "
            f"found {len(checked)} and {len(tests)}"
        )
    test, calibration = (
        np.asarray([[line[name] for name in SCORERS] for line in own], np.float32) for own in (tests, checked)
    )
    good = np.asarray([line["correct"] > 0.5 for line in checked])
    found = compiled.optimized_selection(calibration, good, test, jax.random.key(seed), level=level)
    picked, scorer = np.flatnonzero(np.asarray(found.selected)), np.asarray(found.scorer)
    wrong = sum(tests[place]["correct"] <= 0.5 for place in picked)
    return {
        "trusted": [
            {"id": tests[place]["id"], "answer": tests[place]["answer"], "by": SCORERS[scorer[place]]}
            for place in picked
        ],
        "candidates": len(tests),
        "false_share": wrong / max(len(picked), 1),
    }
