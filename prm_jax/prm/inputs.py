"""Solutions to score: step data of any known format, or whole responses that are cut into steps here."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.data import records as lines
from prm_jax.data.rows import read_rows
from prm_jax.data.step_data import StepRecord, read_step_data
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError


def read_solutions(
    path: str | pathlib.Path,
    *,
    format: str = "auto",
    splitter: StepSplitter | None = None,
    skipped: list[lines.BadLine] | None = None,
) -> list[StepRecord]:
    """Reads solutions.

    Args:
      path: step data (see ``read_step_data``), or rows with "prompt" and "response", with or without "steps"; in
        addition, where known, "labels", "outcome", "group", "id", "provenance", as in step data.
      format: of step data, or "auto".
      splitter: cuts responses that come without steps; default: at line ends.
      skipped: bad records are appended to this list instead of raising.

    Returns:
      At least one record.

    Raises:
      UserError: whatever ``read_step_data`` refuses, steps that do not cover their response, an empty response.
    """
    if format != "auto" or not _has_responses(path):
        return read_step_data(path, format=format, skipped=skipped)
    cut = splitter or StepSplitter("newline")
    found = lines.read_all(read_rows(path), lambda row, where: [from_response(row, where, cut)], skipped=skipped)
    if not found:
        also = f": all of its {len(skipped)} records are bad; the first is {skipped[0]}" if skipped else ""
        raise UserError(f"{path} has no solutions in it{also}")
    return found


def from_response(record: Mapping[str, Any], where: str, splitter: StepSplitter) -> StepRecord:
    """One solution from an object with a response."""
    prompt = lines.read_prompt(lines.field(record, "prompt", where), f"{where}:prompt")
    response = lines.text(lines.field(record, "response", where), f"{where}:response")
    steps = record.get("steps")
    if steps is None:
        steps = [response[start:end] for start, end in splitter(response)]
    elif not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise UserError(f"{where}:steps: expected a list of texts, found {lines.kind(steps)}")
    check_cover(steps, response, where)
    labels = record.get("labels")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(steps)):
        count = len(labels) if isinstance(labels, list) else lines.kind(labels)
        raise UserError(f"{where}:labels: {count} labels for {len(steps)} steps; give one per step, null where unknown")
    outcome = record.get("outcome")
    for value in (*(labels or ()), outcome):
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise UserError(f"{where}: labels and outcome must be in [0, 1], found {lines.kind(value)}")
    provenance = record.get("provenance", {})
    if not isinstance(provenance, dict):
        raise UserError(f"{where}:provenance: expected an object, found {lines.kind(provenance)}")
    return StepRecord(
        prompt=prompt,
        steps=tuple(steps),
        labels=None if labels is None else tuple(None if x is None else float(x) for x in labels),
        outcome=None if outcome is None else float(outcome),
        group=str(record.get("group", prompt)),
        id=str(record.get("id", lines.short(where))),
        provenance=provenance,
    )


def check_cover(steps: Sequence[str], response: str, where: str) -> None:
    """Checks that steps are the response, except for white space between them.

    Raises:
      UserError: naming the first step that is not where it should be, or what is left over.
    """
    at = 0
    for index, step in enumerate(steps):
        found = response.find(step.strip(), at)
        if not step.strip() or found < 0 or response[at:found].strip():
            raise UserError(
                f"{where}:steps[{index}]: the steps do not cover the response: expected "
                f"{response[at:].strip()[:40]!r}, found {step[:40]!r}"
            )
        at = found + len(step.strip())
    if response[at:].strip():
        raise UserError(f"{where}:steps: the steps do not cover the response: {response[at:].strip()[:40]!r} is left")


def _has_responses(path: str | pathlib.Path) -> bool:
    """Whether the first row that can be read holds a prompt and a response."""
    for _, row in read_rows(path):
        try:
            return {"prompt", "response"} <= row().keys()
        except UserError:
            continue
    return False
