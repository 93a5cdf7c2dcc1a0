"""Solutions in steps, with labels of the steps or of the outcome: what process reward models learn from.

One schema, and readers of the published formats, each of which is turned into it.
"""

import dataclasses
import difflib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prm_jax.data import records
from prm_jax.data.problems import Prompt
from prm_jax.data.rows import read_rows
from prm_jax.errors import UserError
from prm_jax.option_values import suggest

Label = float | None
"""Probability that a step is right; None: unknown, nothing is learned from it."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One solution in steps.

    Attributes:
      prompt: text, chat messages, or token ids.
      steps: at least one; no step is blank.
      labels: one per step, each in [0, 1] or None; or None when no step has a label.
      outcome: of the whole solution, in [0, 1], or None when it is unknown.
      group: solutions of one problem have the same; pairs are made within a group.
      id: names the record in messages and results.
      provenance: where labels come from (model, sampling, counts), as JSON values.
      forced: spans [start, end) of characters of the joined steps that the model did not write, such as what a tool or
        an environment answered. They are read, and belong to no loss and no reward of tokens.
    """

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[Label, ...] | None
    outcome: float | None
    group: str
    id: str
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forced: tuple[tuple[int, int], ...] = ()

    def head(self, count: int) -> "StepRecord":
        """The record's first steps, with their labels; an outcome is that of the whole solution and is dropped."""
        steps = self.steps[:count]
        size = sum(map(len, steps))
        spans = tuple((start, min(end, size)) for start, end in self.forced if start < size)
        labels = None if self.labels is None else self.labels[:count]
        return dataclasses.replace(self, steps=steps, labels=labels, outcome=None, forced=spans)

    def first_error(self) -> int | None:
        """Index of the first step that is more likely wrong than right, -1 when every label says right.

        None when that is unknown: without labels, or with an unknown one before the first wrong step.
        """
        if self.labels is None:
            return None
        for index, label in enumerate(self.labels):
            if label is None:
                return None
            if label < 0.5:
                return index
        return -1


def read_step_data(
    path: str | pathlib.Path,
    *,
    format: str = "auto",
    neutral: Label = 1.0,
    skipped: list[records.BadLine] | None = None,
) -> list[StepRecord]:
    """Reads the records of a file.

    Args:
      path: JSON lines, one JSON list (as ProcessBench is published), CSV, Parquet, Arrow, or a directory of these.
      format: a name in ``FORMATS``, or "auto": recognised by the fields of the first record that can be read.
      neutral: label of PRM800K's rating 0.
      skipped: bad records are appended to this list instead of raising.

    Returns:
      At least one record, in the order of the file.

    Raises:
      UserError: a file that cannot be read or is empty, an unknown format (the nearest is named), or a bad record
        without `skipped`; the message names file, line and field.
    """
    if format != "auto" and format not in FORMATS:
        raise UserError(f"unknown format {format!r} of step data; {suggest(format, FORMATS, 'formats')}")
    reader: Callable[..., Iterator[StepRecord]] | None = None

    def read(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
        nonlocal reader
        if reader is None:
            reader = FORMATS[_recognise(record, where) if format == "auto" else format]
        return reader(record, where, neutral=neutral) if reader is _prm800k else reader(record, where)

    found = records.read_all(read_rows(path), read, skipped=skipped)
    if not found:
        also = f": all of its {len(skipped)} records are bad; the first is {skipped[0]}" if skipped else ""
        raise UserError(f"{path} has no records in it{also}")
    return found


def write_step_data(path: str | pathlib.Path, data: Iterable[StepRecord]) -> None:
    """Writes records in the project's own format, one JSON object per line."""
    with open(path, "w", encoding="utf-8") as file:
        for record in data:
            file.write(json.dumps(to_json(record), ensure_ascii=False, allow_nan=False) + "\n")


def to_json(record: StepRecord) -> dict[str, Any]:
    """The object that ``read_step_data`` turns back into the record."""
    fields: dict[str, Any] = {"id": record.id, "group": record.group, "prompt": record.prompt, "steps": record.steps}
    if record.labels is not None:
        fields["labels"] = record.labels
    if record.outcome is not None:
        fields["outcome"] = record.outcome
    if record.provenance:
        fields["provenance"] = dict(record.provenance)
    if record.forced:
        fields["forced"] = record.forced
    return fields


def with_first_error(steps: Sequence[str], index: int) -> tuple[Label, ...]:
    """Labels from the first wrong step: right before it, wrong at it, unknown after it; index -1: all right."""
    if index < 0:
        return (1.0,) * len(steps)
    return (1.0,) * index + (0.0,) + (None,) * (len(steps) - index - 1)


# ---------------------------------------------------------------------------------------- formats


def _own(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
    prompt = records.read_prompt(records.field(record, "prompt", where), f"{where}:prompt")
    steps = _steps(records.field(record, "steps", where), f"{where}:steps")
    labels = record.get("labels")
    outcome = record.get("outcome")
    provenance = record.get("provenance", {})
    if not isinstance(provenance, dict):
        raise UserError(f"{where}:provenance: expected an object, found {records.kind(provenance)}")
    yield StepRecord(
        prompt=prompt,
        steps=steps,
        labels=None if labels is None else _labels(labels, len(steps), f"{where}:labels"),
        outcome=None if outcome is None else _probability(outcome, f"{where}:outcome"),
        group=str(record.get("group", json.dumps(prompt, sort_keys=True))),
        id=str(record.get("id", records.short(where))),
        provenance=provenance,
        forced=_spans(record.get("forced", ()), sum(map(len, steps)), f"{where}:forced"),
    )


def _trl(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
    """TRL's stepwise supervision: prompt, completions (the steps), labels (truth values)."""
    prompt = records.read_prompt(records.field(record, "prompt", where), f"{where}:prompt")
    steps = _steps(records.field(record, "completions", where), f"{where}:completions")
    labels = _labels(records.field(record, "labels", where), len(steps), f"{where}:labels")
    yield StepRecord(prompt, steps, labels, None, json.dumps(prompt, sort_keys=True), records.short(where))


def _processbench(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
    """ProcessBench: problem, steps, label (the first wrong step, -1 for none), final_answer_correct."""
    problem = records.text(records.field(record, "problem", where), f"{where}:problem")
    steps = _steps(records.field(record, "steps", where), f"{where}:steps")
    label = records.field(record, "label", where)
    if type(label) is not int or not -1 <= label < len(steps):
        raise UserError(
            f"{where}:label: expected the index of the first wrong step of {len(steps)}, or -1, "
            f"found {records.kind(label)}"
        )
    right = record.get("final_answer_correct")
    outcome = None if right is None else _probability(right, f"{where}:final_answer_correct")
    name = str(record.get("id", records.short(where)))
    provenance = {"generator": record["generator"]} if isinstance(record.get("generator"), str) else {}
    yield StepRecord(problem, steps, with_first_error(steps, label), outcome, problem, name, provenance)


_SHEPHERD_TAG = "\u043a\u0438"  # the two letters at the end of each step
_SHEPHERD_STEP = re.compile(r"(?=\bStep 1\s?:)")


def _math_shepherd(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
    """Math-Shepherd: the solution twice, with a tag after each step in "input" and + or - in its place in "label"."""
    tagged = records.text(records.field(record, "input", where), f"{where}:input")
    labelled = records.text(records.field(record, "label", where), f"{where}:label")
    *pieces, rest = tagged.split(_SHEPHERD_TAG)
    if not pieces or rest.strip():
        raise UserError(f"{where}:input: expected the tag {_SHEPHERD_TAG!r} after every step, found {tagged[-40:]!r}")
    labels: list[Label] = []
    at = 0
    for piece in pieces:
        sign = labelled[at + len(piece) : at + len(piece) + 1]
        if labelled[at : at + len(piece)] != piece or sign not in ("+", "-"):
            raise UserError(
                f"{where}:label: expected the input with + or - for each tag; step {len(labels) + 1} differs: "
                f"{labelled[at : at + len(piece) + 1][-40:]!r}"
            )
        labels.append(float(sign == "+"))
        at += len(piece) + 1
    parts = _SHEPHERD_STEP.split(pieces[0], maxsplit=1)
    if len(parts) != 2 or not parts[0].strip():
        raise UserError(f"{where}:input: expected a problem and then 'Step 1:', found {pieces[0][:60]!r}")
    prompt = parts[0].strip()
    steps = _steps([parts[1].strip(), *(piece.strip() for piece in pieces[1:])], f"{where}:input")
    provenance = {"task": record["task"]} if isinstance(record.get("task"), str) else {}
    yield StepRecord(prompt, steps, tuple(labels), None, prompt, records.short(where), provenance)


def _prm800k(record: Mapping[str, Any], where: str, *, neutral: Label = 1.0) -> Iterator[StepRecord]:
    """PRM800K: a path of chosen steps, and at each step the alternatives that were also rated.

    Gives one record for the chosen path and one for every alternative, whose steps before the last carry no label
    (they are the path's), so that each rating is used once.
    """
    question = records.field(record, "question", where)
    problem = records.text(records.field(question, "problem", f"{where}:question"), f"{where}:question.problem")
    ratings: dict[Any, Label] = {1: 1.0, 0: neutral, -1: 0.0, None: None}
    path: list[str] = []
    labels: list[Label] = []
    alternatives: list[tuple[tuple[str, ...], Label]] = []
    steps = records.field(records.field(record, "label", where), "steps", f"{where}:label")
    if not isinstance(steps, list):
        raise UserError(f"{where}:label.steps: expected a list, found {records.kind(steps)}")
    for number, step in enumerate(steps):
        place = f"{where}:label.steps[{number}]"
        if not isinstance(step, dict):
            raise UserError(f"{place}: expected an object with fields, found {records.kind(step)}")
        completions = [
            (records.text(records.field(c, "text", place), f"{place}.text"), c.get("rating"))
            for c in step.get("completions") or []
        ]
        bad = [rating for _, rating in completions if not isinstance(rating, int | None) or rating not in ratings]
        if bad:
            raise UserError(f"{place}.rating: expected -1, 0, 1 or null, found {records.kind(bad[0])}")
        chosen = step.get("chosen_completion")
        human = step.get("human_completion")
        if chosen is None and not human and len(completions) == 1:
            chosen = 0  # the labeller stopped here: the step that was found wrong
        if chosen is not None and not (type(chosen) is int and 0 <= chosen < len(completions)):
            raise UserError(f"{place}.chosen_completion: expected one of {len(completions)}, found {chosen!r}")
        for index, (text, rating) in enumerate(completions):
            if index != chosen:
                alternatives.append(((*path, text), ratings[rating]))
        if chosen is not None:
            path.append(completions[chosen][0])
            labels.append(ratings[completions[chosen][1]])
        elif human:
            path.append(records.text(records.field(human, "text", place), f"{place}.human_completion"))
            labels.append(1.0)  # written by the labeller to be right
        else:
            break
    name = records.short(where)
    if path:
        yield StepRecord(problem, tuple(path), tuple(labels), None, problem, name)
    for number, (texts, label) in enumerate(alternatives):
        unknown: tuple[Label, ...] = (None,) * (len(texts) - 1)
        yield StepRecord(problem, texts, (*unknown, label), None, problem, f"{name}/{number}")


def _prmbench(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
    """PRMBench: modified_question, modified_process (the steps), error_steps (counted from 1), classification."""
    problem = records.text(records.field(record, "modified_question", where), f"{where}:modified_question")
    steps = _steps(records.field(record, "modified_process", where), f"{where}:modified_process")
    errors = records.field(record, "error_steps", where)
    if not isinstance(errors, list) or not all(type(step) is int and 1 <= step <= len(steps) for step in errors):
        raise UserError(
            f"{where}:error_steps: expected numbers of wrong steps from 1 to {len(steps)}, found {records.kind(errors)}"
        )
    labels = tuple(float(number not in errors) for number in range(1, len(steps) + 1))
    name = str(record.get("idx", records.short(where)))
    category = record.get("classification")
    provenance = {"category": category} if isinstance(category, str) else {}
    yield StepRecord(problem, steps, labels, None, problem, name, provenance)


def _bigbench_mistake(record: Mapping[str, Any], where: str) -> Iterator[StepRecord]:
    """BIG-Bench Mistake: input, steps, mistake_index (the first wrong step, null for none), answer, target."""
    problem = records.text(records.field(record, "input", where), f"{where}:input")
    steps = _steps(records.field(record, "steps", where), f"{where}:steps")
    mistake = records.field(record, "mistake_index", where)
    if mistake is not None and (type(mistake) is not int or not 0 <= mistake < len(steps)):
        raise UserError(
            f"{where}:mistake_index: expected the index of the first wrong step of {len(steps)}, or null, "
            f"found {records.kind(mistake)}"
        )
    answer, target = record.get("answer"), record.get("target")
    known = isinstance(answer, str) and isinstance(target, str)
    outcome = float(str(answer).strip() == str(target).strip()) if known else None
    labels = with_first_error(steps, -1 if mistake is None else mistake)
    yield StepRecord(problem, steps, labels, outcome, problem, records.short(where))


FORMATS: dict[str, Callable[..., Iterator[StepRecord]]] = {
    "prm_jax": _own,
    "trl": _trl,
    "processbench": _processbench,
    "math_shepherd": _math_shepherd,
    "prm800k": _prm800k,
    "prmbench": _prmbench,
    "bigbench_mistake": _bigbench_mistake,
}
"""Name -> reader of one object, which may give several records."""

_TELLING_FIELDS = {
    "prmbench": {"modified_question", "modified_process", "error_steps"},
    "bigbench_mistake": {"input", "steps", "mistake_index"},
    "processbench": {"problem", "steps", "label"},
    "prm800k": {"question", "label"},
    "math_shepherd": {"input", "label"},
    "trl": {"prompt", "completions", "labels"},
    "prm_jax": {"prompt", "steps"},
}


def _recognise(record: Mapping[str, Any], where: str) -> str:
    for name, fields in _TELLING_FIELDS.items():
        if fields <= record.keys():
            return name
    # The share of a format's fields that are there, a misspelt one counting for half.
    alike = {
        name: {field: difflib.get_close_matches(field, list(record), n=1, cutoff=0.7) for field in fields}
        for name, fields in _TELLING_FIELDS.items()
    }
    likeness = {
        name: sum((field in record) + 0.5 * (field not in record and bool(near)) for field, near in fields.items())
        / len(fields)
        for name, fields in alike.items()
    }
    closest = max(likeness, key=lambda name: (likeness[name], len(alike[name])))
    missing = [
        field + (f" (is it {near[0]!r}?)" if near else "")
        for field, near in sorted(alike[closest].items())
        if field not in record
    ]
    hint = f"; the nearest is {closest}, which lacks {', '.join(missing)}" if likeness[closest] else ""
    found = ", ".join(sorted(record)) or "nothing"
    raise UserError(f"{where}: no known format of step data has the fields {found}{hint}")


# ---------------------------------------------------------------------------------------- checks


def read_objects(path: str | pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, object) of each row of a data file.

    Raises:
      UserError: a file that cannot be read, or a row that is not an object.
    """
    for where, row in read_rows(path):
        yield where, row()


def _steps(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list of steps, found {records.kind(value)}")
    return tuple(records.text(step, f"{where}[{index}]") for index, step in enumerate(value))


def _labels(value: Any, count: int, where: str) -> tuple[Label, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list of labels, found {records.kind(value)}")
    if len(value) != count:
        raise UserError(f"{where}: {len(value)} labels for {count} steps; give one per step, null where it is unknown")
    return tuple(None if item is None else _probability(item, f"{where}[{i}]") for i, item in enumerate(value))


def _spans(value: Any, length: int, where: str) -> tuple[tuple[int, int], ...]:
    """Spans of the joined steps, in order."""
    spans = tuple(tuple(item) if isinstance(item, list | tuple) else () for item in value) if value else ()
    end = 0
    for span in spans:
        whole = len(span) == 2 and all(type(place) is int for place in span)
        if not whole or not end <= span[0] < span[1] <= length:
            raise UserError(
                f"{where}: expected pairs [start, end] of characters of the joined steps ({length} characters), in "
                f"order and apart, found {records.kind(value)}"
            )
        end = span[1]
    return spans


def _probability(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise UserError(f"{where}: expected a number in [0, 1] or a truth value, found {records.kind(value)}")
    return float(value)

