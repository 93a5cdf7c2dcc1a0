"""The answer that a response gives to a task's problem, in one form per answer, for votes and for results."""

from typing import Any


def read_answer(task: Any, response: str) -> str | None:
    """The answer of a response in a normal form, in which equal answers are equal texts.

    The answer is read by the task's own ``read_answer``, if it has one, or where its verifier reads it, or else in a
    box, in answer tags, at a marker, or as the last number.

    Args:
      task: with a ``splitter``, and a ``verifier`` or a ``read_answer`` if it has one.
      response: any text.

    Returns:
      The answer, numbers in lowest terms and without units ("$2.50" as "5/2"), other answers with single spaces; None
      for none.
    """
    if hasattr(task, "read_answer"):
        answer: str | None = task.read_answer(response)
        return answer
    from prm_jax.verifiers.extraction import ANSWER_MARKERS, find_answer
    from prm_jax.verifiers.number_text import read_number

    verifier = getattr(task, "verifier", None)
    own = getattr(verifier, "extract", None)
    found = find_answer(response, own, markers=getattr(verifier, "markers", ANSWER_MARKERS)) if own else None
    markers = (*task.splitter.answer_markers, *ANSWER_MARKERS)
    found = found or find_answer(response, "anywhere", markers=markers) or find_answer(response, "last_number")
    if found is None:
        return None
    number = read_number(found)
    return str(number.value) if number is not None else " ".join(found.split())
