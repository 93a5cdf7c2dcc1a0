"""Claims about results of experiments: read from a list, checked against the JSON that the experiments wrote.

A list of claims is a YAML file. Each entry names a claim, its source, the file of results, the numbers to show, and
conditions on their intervals under which its verdict stands.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from prm_jax._version import __version__
from prm_jax.errors import UserError
from prm_jax.input_files import open_input

RESULTS_FORMAT = 1
"""Of results: numbers, or [value, low, high] with a 95 % interval, under nested names."""
MIN_SEEDS = 5
"""With fewer seeds a claim is marked."""
VERDICTS = ("reproduced", "not reproduced", "under a condition", "not testable here", "not yet measured")
RERUNS = ("exact", "cheap", "long")
"""Kinds of experiments by what running them again takes: no randomness; minutes; longer, or downloads."""

_UNMEASURED = ("not testable here", "not yet measured")
_REQUIRED = ("id", "claim", "source", "verdict", "finding")
_OPERATORS = ("<", ">", "~")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One entry of a list of claims.

    Attributes:
      id: short name.
      claim: what the source says.
      source: arXiv id, or "this project".
      verdict: one of `VERDICTS`.
      finding: the verdict in a sentence, conditions included.
      core: number of the core claim that it belongs to; 0 for none.
      results: file of results, relative to the list; "" where nothing was measured.
      command: what was run, from the root of the repository.
      rerun: one of `RERUNS`.
      seeds: number of seeds, "exact", or a path into the results, such as ["config", "seeds"].
      measured: label -> path into the results.
      checks: (label, "<" | ">" | "~", label or number), which must hold for the verdict: intervals apart in that
        order, or overlapping for "~".
    """

    id: str
    claim: str
    source: str
    verdict: str
    finding: str
    core: int = 0
    results: str = ""
    command: str = ""
    rerun: str = "long"
    seeds: int | str | tuple[str, ...] = ()
    measured: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    checks: tuple[tuple[str, str, str | float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Measured:
    """A claim with its numbers.

    Attributes:
      claim: the entry.
      values: label -> (value, low, high); the bounds equal the value where the results have no interval.
      seeds: number of seeds; 0 if the experiment is exact, -1 if nothing was measured.
      seconds: what the experiment took, or its runs did together; None if its results do not say.
      failed: checks that do not hold, in words.
    """

    claim: Claim
    values: Mapping[str, tuple[float, float, float]]
    seeds: int = -1
    seconds: float | None = None
    failed: tuple[str, ...] = ()

    @property
    def few_seeds(self) -> bool:
        """Whether there are fewer than `MIN_SEEDS`."""
        return 0 < self.seeds < MIN_SEEDS


def stamp() -> dict[str, Any]:
    """What a file of results starts with: the format of its numbers and the version that measured them."""
    return {"format": RESULTS_FORMAT, "version": __version__}


def read_claims(path: str | pathlib.Path) -> list[Claim]:
    """Reads a list of claims.

    Raises:
      UserError: the file cannot be read, or entries are malformed; all problems are listed.
    """
    with open_input(path, "the list of claims") as file:
        try:
            entries = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a list of claims, found {type(entries).__name__}")
    problems: list[str] = []
    claims = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, claim {number}"
        if not isinstance(entry, dict):
            problems.append(f"{where}: expected a mapping, found {entry!r:.80}")
            continue
        found = _problems(entry)
        problems += [f"{where} ({entry.get('id', 'no id')}): {problem}" for problem in found]
        if not found:
            claims.append(_claim(entry))
    names = [claim.id for claim in claims]
    problems += [f"{path}: two claims are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise UserError("\n".join(problems))
    return claims


def measure(claim: Claim, folder: pathlib.Path) -> Measured:
    """Reads the numbers of a claim from its results under `folder`, and tests its checks.

    Raises:
      UserError: the results are absent, of another version or format, or lack a number.
    """
    if not claim.results:
        return Measured(claim, {})
    path = folder / claim.results
    results = read_results(path, claim.command)
    values = {}
    for label, keys in claim.measured.items():
        values[label] = _interval(_look_up(results, keys, path, claim.id), path, keys)
    seeds = claim.seeds
    if isinstance(seeds, tuple):
        seeds = int(_look_up(results, seeds, path, claim.id))
    return Measured(
        claim,
        values,
        0 if isinstance(seeds, str) else seeds,
        _seconds(results),
        tuple(text for check in claim.checks if (text := _failure(check, values))),
    )


def _seconds(results: Mapping[str, Any]) -> float | None:
    """What an experiment took: its `seconds`, or the sum of the `processor_seconds` or `seconds` of its `runs`."""
    runs = results.get("runs")
    if "seconds" in results or not isinstance(runs, list):
        found = [results.get("seconds")]
    else:
        found = [run.get("processor_seconds", run.get("seconds")) for run in runs if isinstance(run, dict)]
    known = [value for value in found if isinstance(value, int | float)]
    return float(sum(known)) if known and len(known) == len(found) else None


def read_results(path: pathlib.Path, command: str = "") -> dict[str, Any]:
    """Reads a file of results; `command` is what writes it again, for messages.

    Raises:
      UserError: it cannot be read, or is of another format or of another minor version of this package.
    """
    again = f": run {command}" if command else ""
    with open_input(path, "the results") as file:
        try:
            results = json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}{again}") from error
    if not isinstance(results, dict):
        raise UserError(f"{path}: expected a mapping, found {type(results).__name__}{again}")
    if results.get("format") != RESULTS_FORMAT:
        raise UserError(f"{path} has results of format {results.get('format')}, expected {RESULTS_FORMAT}{again}")
    version = str(results.get("version"))
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise UserError(f"{path} was measured with version {version}, this is {__version__}{again}")
    return results


def _problems(entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with an entry of the list."""
    known = {field.name for field in dataclasses.fields(Claim)}
    problems = [f"unknown field {name!r}; there are {', '.join(sorted(known))}" for name in entry if name not in known]
    problems += [
        f"{name}: expected a text, found {entry.get(name)!r}"
        for name in _REQUIRED
        if not isinstance(entry.get(name), str) or not entry[name].strip()
    ]
    if entry.get("verdict") not in VERDICTS:
        problems.append(f"verdict: expected one of {', '.join(VERDICTS)}, found {entry.get('verdict')!r}")
    if entry.get("rerun", "long") not in RERUNS:
        problems.append(f"rerun: expected one of {', '.join(RERUNS)}, found {entry['rerun']!r}")
    measured = entry.get("measured", {})
    if not isinstance(measured, dict) or not all(isinstance(keys, list) and keys for keys in measured.values()):
        return [*problems, "measured: expected a mapping from labels to paths such as [tables, title, row, column]"]
    if entry.get("verdict") not in _UNMEASURED:
        wanted = ("results", "command", "seeds", "measured", "checks")
        problems += [f"{name} is missing; a measured claim needs it" for name in wanted if not entry.get(name)]
        seeds = entry.get("seeds")
        if seeds and not (seeds == "exact" or isinstance(seeds, list) or (type(seeds) is int and seeds > 0)):
            problems.append(f"seeds: expected a number, exact, or a path such as [config, seeds], found {seeds!r}")
    elif measured or entry.get("results"):
        problems.append(f"verdict {entry['verdict']!r}, but there are results; say what they show")
    for check in entry.get("checks", []):
        if not (isinstance(check, list) and len(check) == 3 and check[0] in measured and check[1] in _OPERATORS):
            problems.append(f"checks: expected [label, one of {' '.join(_OPERATORS)}, label or number], found {check}")
        elif isinstance(check[2], str) and check[2] not in measured:
            problems.append(f"checks: {check[2]!r} is not a label under measured")
    return problems


def _claim(entry: Mapping[str, Any]) -> Claim:
    seeds = entry.get("seeds", ())
    return Claim(
        **{
            **entry,
            "seeds": tuple(seeds) if isinstance(seeds, list) else seeds,
            "measured": {label: tuple(map(str, keys)) for label, keys in entry.get("measured", {}).items()},
            "checks": tuple((left, operator, right) for left, operator, right in entry.get("checks", [])),
        }
    )


def _look_up(results: Any, keys: Sequence[str], path: pathlib.Path, name: str) -> Any:
    found = results
    for depth, key in enumerate(keys):
        if isinstance(found, list) and key.lstrip("-").isdigit() and -len(found) <= int(key) < len(found):
            found = found[int(key)]
            continue
        if not isinstance(found, dict) or key not in found:
            known = ", ".join(map(str, found)) if isinstance(found, dict) else repr(found)
            place = " > ".join(keys[:depth]) or "the top"
            raise UserError(f"claim {name}: {path} has no {key!r} at {place}, which has: {known:.400}")
        found = found[key]
    return found


def _interval(value: Any, path: pathlib.Path, keys: Sequence[str]) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list) and len(value) == 3 else [value] * 3
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{path}: expected a finite number or [value, low, high] at {' > '.join(keys)}, found {value}")
    return tuple(float(x) for x in numbers)  # type: ignore[return-value]


def _failure(check: tuple[str, str, str | float], values: Mapping[str, tuple[float, float, float]]) -> str:
    """Says that a check does not hold; an empty text if it does."""
    left, operator, right = check
    _, low, high = values[left]
    _, other_low, other_high = values[right] if isinstance(right, str) else (float(right),) * 3
    below, above = high < other_low, low > other_high
    if {"<": below, ">": above, "~": not below and not above}[operator]:
        return ""
    return f"{left} {operator} {right} does not hold: [{low:g}, {high:g}] and [{other_low:g}, {other_high:g}]"
