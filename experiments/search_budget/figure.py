"""Draws accuracy over tokens from the results of `main`: `python -m experiments.search_budget.figure DIRECTORY`."""

import json
import pathlib
import sys
from typing import Any

from experiments.report import COLORS

COLOR = dict(
    zip(("best-of-n", "weighted best-of-n", "beam search", "DVTS", "step-level beam", "MCTS"), COLORS, strict=True)
)


def draw(tables: dict[str, Any], path: pathlib.Path) -> None:
    """A panel for each policy and scorer, a line with its band for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    names = [title.removesuffix(": accuracy") for title in tables if title.endswith(": accuracy")]
    figure = Figure(figsize=(10.4, 1.0 + 3.7 * (len(names) // 2)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names) // 2, 2, sharex=True, sharey="row", squeeze=False)
    for axis, name in zip(axes.flat, names, strict=True):
        for method, row in tables[f"{name}: accuracy"].items():
            tokens = [tables[f"{name}: tokens a problem"][method][column] for column in row]
            # An interval of width 0 is kept as one number.
            ends = [value if isinstance(value, list) else [value] * 3 for value in row.values()]
            mean, low, high = zip(*ends, strict=True)
            color = COLOR.get(method, "black")
            style = {"ls": "--", "lw": 2.0} if method == "majority vote" else {"marker": "o", "ms": 3.5, "lw": 1.3}
            axis.plot(tokens, mean, color=color, label=method, **style)
            axis.fill_between(tokens, low, high, color=color, alpha=0.10, lw=0)
        axis.set_title(name, loc="left", fontsize=9, fontweight="bold")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E4E4E4")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("tokens generated a problem", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    draw(json.loads((directory / "results.json").read_text())["tables"], directory / "figure.png")
