"""The candidate that a search answers with."""

from collections.abc import Sequence

import numpy as np

from prm_jax.search.beams import vote
from prm_jax.search.partials import Candidate
from prm_jax.search.searchers import Choice


def choose_candidate(
    candidates: Sequence[Candidate], answers: Sequence[str | None], weights: Sequence[float], choice: Choice
) -> Candidate | None:
    """The best candidate, or the best one with the answer that wins a vote.

    Args:
      candidates: best first.
      answers: of each candidate; None for none, which has no vote.
      weights: of each candidate's vote, at least 0, for "weighted" and "mean".
      choice: "best", "majority", "weighted" or "mean".

    Returns:
      The candidate; None without candidates.
    """
    if not candidates:
        return None
    if choice == "best":
        return candidates[0]
    known = list(dict.fromkeys(answer for answer in answers if answer is not None))
    ids = np.array([[known.index(answer) if answer is not None else -1 for answer in answers]])
    winner = int(vote(np.asarray([weights], np.float32), ids, choice)[0])
    return candidates[list(answers).index(known[winner])] if winner >= 0 else candidates[0]
