"""What a run found: ``result.json`` for machines, ``report.md`` and a table for people, plots as PNG."""

import json
import math
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

from prm_jax.errors import MissingExtraError
from prm_jax.prime.loop import Trained
from prm_jax.prime.options import Options
from prm_jax.prime.proxy_report import proxy_gold, proxy_table
from prm_jax.runs.metrics_log import atomic_write, read_metrics
from prm_jax.runs.versions import library_versions

_TITLES = {"prime": "PRIME", "outcome_only": "outcome only"}
EQUAL_ROLLOUTS = (
    "Outcome-only training has more steps because both policies are compared at equal numbers of sampled responses: "
    "PRIME uses some of them to warm up its PRM or to value prefixes."
)
"""Shown where the two policies were trained for different numbers of steps."""

_POLICY_ROWS = {
    "eval/greedy_accuracy": "greedy accuracy",
    "eval/sampled_accuracy": "sampled accuracy",
    "eval/greedy_step_accuracy": "greedy step accuracy",
    "eval/sampled_step_accuracy": "sampled step accuracy",
}
_PRM_ROWS = {
    "prm_eval/first_error_f1": "first-error F1",
    "prm_eval/error_acc": "accuracy on wrong responses",
    "prm_eval/correct_acc": "accuracy on right responses",
    "prm_eval/step_auc": "step AUC",
}


def write_report(
    path: pathlib.Path, options: Options, results: Mapping[str, Trained], *, seconds: float
) -> dict[str, Any]:
    """Writes the report of a finished run.

    Args:
      path: the run directory.
      options: of the run.
      results: by arm, ``prime`` and ``outcome_only`` or one of them.
      seconds: wall-clock time of the whole run (of the last part, if it was resumed).

    Returns:
      The contents of ``result.json``.
    """
    records = [read_metrics(path if index == 0 else path / name) for index, name in enumerate(results)]
    tracked = proxy_gold(records[0] if "prime" in results else [], tolerance=options.watch.accuracy_drop)
    summary = {
        "task": options.task.name,
        "task_options": dict(options.task.options),
        "seed": options.seed,
        "steps": options.steps,
        "seconds": round(seconds, 1),
        "machine": {"cpu_count": os.cpu_count(), "processor": platform.machine(), **_devices()},
        "versions": library_versions(),
        "arms": {
            name: {
                "before": result.before,
                "after": result.after,
                "prm_after_warm_up": result.warmed_up,
                "rollouts": result.rollouts,
                **({"best_step": result.best_step} if result.best_step >= 0 else {}),
            }
            for name, result in results.items()
        },
        **({"proxy_gold": tracked} if tracked else {}),
    }
    with atomic_write(path / "result.json") as file:
        file.write(json.dumps(_finite(summary), indent=2) + "\n")
    steps = [int(own[-1]["step"]) for own in records]
    tables = [_policy_table(results, records), _prm_table(options.reward.source, results), proxy_table(tracked)]
    lines = [f"# {options.task.name}: {options.steps} steps, seed {options.seed}", ""]
    console = RichConsole()
    for title, header, rows in tables:
        if not rows:
            continue
        lines += [f"## {title}", "", _markdown(header, rows), ""]
        if title == tables[0][0] and len(set(steps)) > 1:
            lines += [EQUAL_ROLLOUTS, ""]
        shown = Table(title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(header):
            shown.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    if len(set(steps)) > 1:
        console.print(EQUAL_ROLLOUTS, highlight=False)
    for name, result in results.items():
        if result.best_step >= 0:
            line = f"The {_TITLES[name]} policy that is kept is that of step {result.best_step}, the best by "
            lines += [f"{line}{options.eval.keep_best}; the table shows the last one.", ""]
            console.print(lines[-2], highlight=False, markup=False)
    pictures = _plots(path, options, results)
    lines += [f"![{picture.stem}]({picture.relative_to(path)})" for picture in pictures]
    lines += ["", f"{seconds:.0f} s on {os.cpu_count()} CPU cores, {_devices()['devices']}."]
    (path / "report.md").write_text("\n".join(lines) + "\n")
    kept = "report, plots, samples and models" if pictures else "report, samples and models"
    console.print(f"{seconds:.0f} s; {kept} are in {path}", highlight=False, markup=False)
    return summary


def _policy_table(
    results: Mapping[str, Trained], records: Sequence[list[dict[str, float]]]
) -> tuple[str, list[str], list[list[str]]]:
    """(title, header, rows); `records` are the metrics of each result's run."""
    header = ["", "before"] + [_TITLES[name] for name in results]
    first = next(iter(results.values()))
    afters = [result.after for result in results.values()]
    rows = [
        [title, *(f"{found[key]:.3f}" if key in found else "" for found in (first.before, *afters))]
        for key, title in _POLICY_ROWS.items()
        if key in first.before
    ]
    if rows:
        rows.append(["training steps", "0"] + [f"{int(own[-1]['step']):,}" for own in records])
        rows.append(["responses sampled", "0"] + [f"{result.rollouts:,}" for result in results.values()])
        rows += _sampling_rows(records)
    return "Policy on problems that training never saw", header, rows


def _sampling_rows(records: Sequence[list[dict[str, float]]]) -> list[list[str]]:
    """How well the slots were used, where there were any, and what was sampled and not used."""
    used = [[one["rollout/utilisation"] for one in own if "rollout/utilisation" in one] for own in records]
    wasted = [sum(one.get("rollout/wasted_tokens", 0.0) for one in own) for own in records]
    rows = [["tokens sampled but not used", "0"] + [f"{count:,.0f}" for count in wasted]]
    if any(used):
        mean = [f"{sum(own) / len(own):.2f}" if own else "" for own in used]
        rows.insert(0, ["utilisation of the slots, mean over steps", "", *mean])
    return rows


def _prm_table(source: str, results: Mapping[str, Trained]) -> tuple[str, list[str], list[list[str]]]:
    name = "PRM, trained on outcomes alone," if source == "implicit" else f"Process rewards (source: {source})"
    title = f"{name} against exact step labels of the initial policy's responses"
    found = results.get("prime")
    header = ["", "before", "after warm-up", "after PRIME"]
    if found is None:
        return title, header, []
    columns = [found.before if not found.warmed_up else {}, found.warmed_up, found.after]
    rows = [
        [name, *(f"{column[key]:.3f}" if key in column else "" for column in columns)]
        for key, name in _PRM_ROWS.items()
        if key in found.after
    ]
    filled = [0, *(index for index in range(1, len(header)) if any(row[index] for row in rows))]
    return title, [header[index] for index in filled], [[row[index] for index in filled] for row in rows]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _plots(path: pathlib.Path, options: Options, results: Mapping[str, Trained]) -> list[pathlib.Path]:
    if not options.plots:
        return []
    try:
        from prm_jax.runs import plots

        runs = {_TITLES[name]: path if index == 0 else path / name for index, name in enumerate(results)}
        return plots.plot_report(runs, path / "plots")
    except MissingExtraError as error:
        RichConsole(stderr=True).print(f"no plots: {error}", highlight=False, markup=False, soft_wrap=True)
        return []


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _devices() -> dict[str, str]:
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {"devices": f"{len(kinds)} x {kinds[0]}"}
