"""What the small experiments share: flags from a configuration, tables, intervals, a picture, numbers in a file.

An experiment is a frozen dataclass of settings, a smaller instance of it for smoke runs, a function from settings to
tables, and the panels of its picture. Run one from the root of the repository:

    python -m experiments.<name>.main [--smoke] [--out DIRECTORY]

with a flag for every setting. `--out` keeps `results.json` and `figure.png` there; `experiments/claims.yaml` says which
numbers `docs/claims.md` shows.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import tyro

from prm_jax import stats
from prm_jax.runs.claims import stamp

Config = TypeVar("Config")
Table = Mapping[str, Mapping[str, float]]
"""Row -> column -> number."""
Tables = Mapping[str, Table]
"""Title -> table."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class Estimate(float):
    """A mean over repeats that carries its 95 % interval; a plain number to all who do not ask."""

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> "Estimate":
        """A float with two attributes."""
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of the picture of an experiment.

    Attributes:
      title: the table it shows.
      columns: the columns it shows; empty for all but `x`.
      x: the column on the horizontal axis of a "curve".
      kind: "dots", one row of the table a line, or "curve", one line a column.
      log: whether the axis of numbers is logarithmic.
    """

    title: str
    columns: tuple[str, ...] = ()
    x: str = ""
    kind: Literal["dots", "curve"] = "dots"
    log: bool = False


def main(run: Callable[[Config], Tables], full: Config, smoke: Config, panels: Sequence[Panel] = ()) -> None:
    """Reads flags, runs, prints, and keeps what was measured."""
    arguments = sys.argv[1:]
    start = smoke if "--smoke" in arguments else full
    arguments = [a for a in arguments if a != "--smoke"]
    target = None
    if "--out" in arguments:
        at = arguments.index("--out")
        if at + 1 == len(arguments):
            sys.exit("--out needs a directory")
        target = pathlib.Path(arguments[at + 1])
        del arguments[at : at + 2]
    config: Any = tyro.cli(type(start), default=start, args=arguments)
    began = time.perf_counter()
    tables = run(config)
    took = time.perf_counter() - began
    print(render(tables))
    print(f"\n{took:.1f} s on {machine()}; {config}")
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        record = {**stamp(), "config": dataclasses.asdict(config), "machine": machine(), "seconds": round(took, 1)}
        text = json.dumps({**record, "tables": plain(tables)}, indent=1)
        (target / "results.json").write_text(text + "\n")
        insert(target / "README.md", "tables", render(tables))
        if panels:
            draw(tables, panels, target / "figure.png")


def insert(page: pathlib.Path, name: str, text: str) -> None:
    """Replaces what stands between <!-- name --> and <!-- /name --> in a page; a page without them stays as it is."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not page.is_file():
        return
    before, found, rest = page.read_text().partition(begin)
    _, ends, after = rest.partition(end)
    if found and ends:
        page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def machine() -> str:
    """One line on what the numbers were made with."""
    device = jax.devices()[0]
    return (
        f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores, "
        f"jax {jax.__version__}, Python {platform.python_version()}"
    )


def kept(folder: str, settings: Any, piece: str, make: Callable[[], Any]) -> Any:
    """A piece of a long experiment: what an earlier run with equal settings left in `folder`, or made and left there.

    Args:
      folder: of the pieces; an empty one keeps nothing.
      settings: a dataclass instance with all that the piece depends on.
      piece: its name, unique for these settings.
      make: gives the piece, which JSON can hold.
    """
    if not folder:
        return make()
    known = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    path = pathlib.Path(folder) / f"{hashlib.sha256(known.encode()).hexdigest()[:12]}-{piece}.json"
    if not path.is_file():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of independent repeats and its 95 % interval by Student's t; one repeat has an interval of width 0."""
    if len(values) == 1:
        return Estimate(float(values[0]), float(values[0]), float(values[0]))
    return Estimate(*stats.interval(values))


def ratio(values: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray) -> Estimate:
    """Geometric mean of the paired ratios values / base, with Student's interval of their logarithms."""
    logs = estimate(np.log(np.asarray(values, float)) - np.log(np.asarray(base, float)))
    return Estimate(float(np.exp(logs)), float(np.exp(logs.low)), float(np.exp(logs.high)))


def average(found: Sequence[Table]) -> dict[str, dict[str, float]]:
    """The tables of several seeds as one table of estimates."""
    return {
        row: {column: estimate([table[row][column] for table in found]) for column in columns}
        for row, columns in found[0].items()
    }


def render(tables: Tables) -> str:
    """The tables as aligned Markdown, numbers to three digits, intervals in brackets."""
    lines: list[str] = []
    for title, rows in tables.items():
        columns = list(dict.fromkeys(c for row in rows.values() for c in row))
        cells = [["", *columns], ["---", *["--:"] * len(columns)]]
        cells += [[name, *(_cell(row[c]) if c in row else "" for c in columns)] for name, row in rows.items()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
        lines += ["", f"**{title}**", ""] if lines else [f"**{title}**", ""]
        for line in cells:
            first, rest = line[0].ljust(widths[0]), (c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
            lines.append(f"| {' | '.join([first, *rest])} |")
    return "\n".join(lines)


def plain(tables: Tables) -> dict[str, dict[str, dict[str, Any]]]:
    """The tables for JSON: an estimate with an interval becomes [mean, low, high]."""

    def number(x: float) -> Any:
        if isinstance(x, Estimate) and x.low != x.high:
            return [float(f"{v:.5g}") for v in (float(x), x.low, x.high)]
        return float(f"{float(x):.5g}")

    return {t: {r: {c: number(x) for c, x in row.items()} for r, row in rows.items()} for t, rows in tables.items()}


def draw(tables: Tables, panels: Sequence[Panel], path: pathlib.Path) -> None:
    """Draws the panels side by side, off screen; needs the extra plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    tallest = max(len(tables[p.title]) if p.kind == "dots" else 6 for p in panels)
    figure = Figure(figsize=(5.2 * len(panels), 1.3 + 0.34 * tallest), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = tables[panel.title]
        columns = panel.columns or tuple(c for c in next(iter(rows.values())) if c != panel.x)
        (_dots if panel.kind == "dots" else _curve)(axis, rows, columns, panel)
        axis.set_title(textwrap.fill(panel.title, 48), loc="left", fontsize=9, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x" if panel.kind == "dots" else "y", color="#E4E4E4")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        if panel.log:
            numbers = axis.xaxis if panel.kind == "dots" else axis.yaxis
            numbers.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            numbers.set_major_formatter(StrMethodFormatter("{x:g}"))
            numbers.set_minor_formatter(NullFormatter())
        if len(columns) > 1:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.11), "ncols": 2}
            axis.legend(fontsize=8, frameon=False, **place)
    figure.savefig(path)


def _dots(axis: Any, rows: Table, columns: Sequence[str], panel: Panel) -> None:
    """One line of the panel for each row, a dot and its interval for each column."""
    names = list(rows)
    for index, column in enumerate(columns):
        shown = [i for i, name in enumerate(names) if column in rows[name]]
        values = [rows[names[i]][column] for i in shown]
        height = np.array(shown) + 0.16 * (index - (len(columns) - 1) / 2)
        axis.errorbar(values, height, xerr=_spread(values), fmt="o", ms=4.5, color=COLORS[index % 6], label=column)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    if panel.log:
        axis.set_xscale("log")
    axis.set_xlabel(columns[0] if len(columns) == 1 else "", fontsize=8)


def _curve(axis: Any, rows: Table, columns: Sequence[str], panel: Panel) -> None:
    """One line for each column over the column `x`."""
    x = [row[panel.x] for row in rows.values()]
    for index, column in enumerate(columns):
        values = [row[column] for row in rows.values()]
        axis.errorbar(x, values, yerr=_spread(values), fmt="o-", ms=3.5, color=COLORS[index % 6], label=column)
    axis.set_xlabel(panel.x, fontsize=8)
    if panel.log:
        axis.set_yscale("log")


def _spread(values: Sequence[float]) -> np.ndarray:
    """[2, N] distances from each value to the ends of its interval."""
    ends = [(v - v.low, v.high - v) if isinstance(v, Estimate) else (0.0, 0.0) for v in values]
    return np.array(ends).reshape(-1, 2).T


def _cell(x: float) -> str:
    if isinstance(x, Estimate) and x.low != x.high:
        return f"{x:.3g} [{x.low:.3g}, {x.high:.3g}]"
    return f"{float(x):.3g}"
