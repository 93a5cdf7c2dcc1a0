"""The files of ``prm-jax label``: labels so far (.partial), the finished file, and its settings (.settings)."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.commands import json_lines, results
from prm_jax.errors import UserError


def check_chunks(partial: pathlib.Path, done: Sequence[dict[str, Any]], most: int) -> None:
    """What an earlier run kept must be the records of the first chunks."""
    for number, chunk in enumerate(done):
        calls, records = chunk.get("calls"), chunk.get("records")
        known = isinstance(calls, int) and isinstance(records, list) and all(isinstance(r, dict) for r in records)
        if number >= most or not known:
            raise UserError(
                f"cannot continue {partial}: line {number + 2} is not the result of one of {most} chunks, found "
                f"{str(chunk)[:80]}"
            )


def _settings_file(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(out.name + ".settings")


def check_finished(out: pathlib.Path, first: dict[str, Any], provenance: Mapping[str, Any]) -> None:
    """Compares the settings of a finished file: those next to it, or else the provenance of its lines."""
    from prm_jax.data.step_data import read_step_data

    if _settings_file(out).exists():
        head = json_lines.whole_lines(_settings_file(out))[:1]
        results.check_settings(_settings_file(out), json.loads(head[0]) if head else {}, first)
        return
    told = dict(read_step_data(out)[0].provenance)
    differ = results.differences({name: told.get(name) for name in provenance}, provenance)
    if differ:
        raise UserError(f"{out} was made with other {', '.join(differ)}: give another name")


def finish(
    out: pathlib.Path, partial: pathlib.Path, done: Sequence[dict[str, Any]], problems: int, counted: str
) -> None:
    """Writes the file that train-prm reads, and prints what it holds."""
    records = [record for chunk in done for record in chunk["records"]]
    if not records:
        partial.unlink()
        if counted == "programs":
            raise UserError(
                f"no solution could be labelled: of {problems} problems, none has a solution that passes its "
                "own tests; --task-options ... check_solutions true says why"
            )
        hint = "--tree.simulations" if counted == "proposals" else "--rollouts"
        raise UserError(
            f"no solution could be labelled: the rollouts of all {problems} problems were all correct or all wrong, or "
            f"gave no answer; use other problems, more {hint} or another --sampling.temperature"
        )
    # First, so that no finished file is without its settings.
    json_lines.write(_settings_file(out), json_lines.whole_lines(partial)[:1])
    json_lines.write(out, [json_lines.dump(record) for record in records])
    partial.unlink()
    known = [label for record in records for label in record.get("labels", ()) if label is not None]
    errors, calls = sum(label == 0 for label in known), sum(chunk["calls"] for chunk in done)
    print(f"{out}: {len(records)} solutions, {len(known)} labels, {errors} of them 0, {calls} {counted}")
    without = problems - len({record["group"] for record in records})
    if counted == "programs" and without:
        print(f"{without} of {problems} problems are left out: they have no solution that passes its own tests")
