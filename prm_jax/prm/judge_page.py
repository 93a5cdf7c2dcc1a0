"""The results of an evaluation as one page: tables, and charts as SVG in the page itself."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.prm.page import document

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 420, 280, 48, 40, 14, 12


def results_page(results: Mapping[str, Any], *, title: str) -> str:
    """The page that shows what ``judge_scores`` returned."""
    parts = [_process_bench(results["process_bench"])]
    for name, found in results["subsets"].items():
        parts.append(f"<h2>{_text(name)}</h2>")
        parts.append(f'<p class="note">{found["solutions"]} solutions to {found["problems"]} problems</p>')
        parts.append(_facts(found))
        parts.append(_best_of_n(found["best_of_n"]))
        parts.append(_calibration(found["calibration"]))
        parts.append(_categories(found["categories"]))
    parts.append(_ablation(results.get("ablation", {})))
    return document(title, "\n".join(part for part in parts if part))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, style: str = "") -> str:
    """An HTML table that scrolls where it is too wide; numbers with three decimals, all texts escaped."""
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    named = f' class="{style}"' if style else ""
    head_row = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table{named}>{head_row}<tbody>{lines}</tbody></table></div>'


def chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    caption: str,
    x_ticks: Mapping[float, str],
    diagonal: bool = False,
) -> str:
    """Lines over a common horizontal axis, the vertical one from 0 to 1."""
    xs = [x for points in series.values() for x, _ in points] + list(x_ticks)
    low, high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - low) / (high - low) * inner_width, _TOP + (1 - min(1.0, max(0.0, y))) * inner_height

    drawn = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(low, tick)
        drawn.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="rule"/>')
        drawn.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick, label in x_ticks.items():
        x, y = place(tick, 0)
        drawn.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_text(label)}</text>')
    if diagonal:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        drawn.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="guide" stroke-dasharray="4 3"/>'
        )
    names = []
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in (place(*p) for p in points)
        ]
        names.append(f'<li><i style="background:{colour}"></i>{_text(name)}</li>')
    legend = f'<ul class="legend">{"".join(names)}</ul>' if len(names) > 1 else ""
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(caption, quote=True)}" font-size="11" font-family="system-ui, sans-serif">'
        f"{''.join(drawn)}</svg>{legend}<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _process_bench(found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return f'<h2>First wrong step</h2><p class="note">left out: {_text(found["skipped"])}</p>'
    rows = []
    for name, one in found["subsets"].items():
        low, high = one.get("interval", (None, None))
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        rows.append([
            name, one["f1"], interval, one["error_acc"], one["correct_acc"], one["wrong"], one["right"],
            one["random_f1"], one["always_right_f1"],
        ])  # fmt: skip
    head = ["subset", "F1", "95 %", "on wrong", "on right", "wrong", "right", "random F1", "always-right F1"]
    return (
        "<h2>First wrong step</h2>"
        f'<p class="note">A step counts as wrong below {found["threshold"]:.4g}, chosen on '
        f"{_text(found['threshold_on'])} and reused. Average F1: <b>{found['average_f1']:.3f}</b>.</p>"
        + table(head, rows)
    )


def _facts(found: Mapping[str, Any]) -> str:
    names = {
        "steps": "steps", "ranking": "one right against the wrong ones", "min_at_last": "lowest score at the last step",
        "verbosity": "correlation of the score with size", "selection": "selection",
    }  # fmt: skip
    rows = []
    for key, title in names.items():
        part = found.get(key)
        if part is None:
            continue
        if "skipped" in part:
            rows.append([title, f"left out: {part['skipped']}"])
            continue
        best = part.get("optimized")
        for label, one in ((title, part), *([(f"{title} over several scorers", best)] if best else [])):
            plain = {name: x for name, x in one.items() if name not in ("ids", "optimized", "scorers")}
            rows.append([label, ", ".join(f"{name.replace('_', ' ')} {_number(x)}" for name, x in plain.items())])
    return table(["", "result"], rows, style="facts")


def _best_of_n(found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return f'<p class="note">best of n left out: {_text(found["skipped"])}</p>'
    sizes = found["sizes"]
    lines: dict[str, Sequence[float]] = {"as scored": found["accuracy"]["as_scored"], "random": found["random"]}
    if "oracle" in found:
        lines["oracle"] = found["oracle"]
    lines |= {f"{name} vote": values for name, values in found.get("votes", {}).items()}
    ticks = {float(k): str(n) for k, n in enumerate(sizes)}
    picture = chart(
        {name: [(float(k), y) for k, y in enumerate(values)] for name, values in lines.items()},
        caption="Accuracy of the chosen solution over the number n to choose from", x_ticks=ticks,
    )  # fmt: skip
    rows = [[name, *values] for name, values in {**found["accuracy"], **lines}.items() if name != "as scored"]
    rows.append(["bound on KL, nats", *found["kl_bound"]])
    rows.append(["problems", *found["problems"]])
    return "<h3>Best of n</h3>" + picture + table(["", *map(str, sizes)], rows)


def _calibration(found: Mapping[str, Any]) -> str:
    parts = []
    for name, one in found.items():
        if "skipped" in one:
            parts.append(f'<p class="note">calibration of {name} left out: {_text(one["skipped"])}</p>')
            continue
        bins = one["reliability"]
        points = [(x, y) for x, y, n in zip(bins["confidence"], bins["accuracy"], bins["size"], strict=True) if n]
        picture = chart(
            {"raw scores": points}, caption=f"Reliability of {name}: how often right, over the score",
            x_ticks={0.0: "0", 0.5: "0.5", 1.0: "1"}, diagonal=True,
        )  # fmt: skip
        fits = [fit for fit in ("raw", "platt", "isotonic", "venn_abers") if fit in one]
        rows = [[fit, one[fit]["ece"], one[fit]["ace"], one[fit]["brier"]] for fit in fits]
        parts.append(f"<h3>Calibration of {name}</h3>{picture}{table(['', 'ECE', 'ACE', 'Brier'], rows)}")
    return "".join(parts)


def _categories(found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return ""
    rows = [
        [name, one["solutions"], one.get("f1_right", ""), one.get("f1_wrong", ""), one.get("score", "")]
        for name, one in found.items()
    ]
    return "<h3>Categories</h3>" + table(["category", "solutions", "F1 right", "F1 wrong", "score"], rows)


def _ablation(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    rows = [
        [
            mask, name, one["correlation"], *one.get("first_error_f1", ["", ""]), *one.get("auc", ["", ""]),
        ]
        for mask, subsets in found.items()
        for name, one in subsets.items()
    ]  # fmt: skip
    head = ["without", "subset", "correlation", "F1, whole", "F1, masked", "step AUC, whole", "step AUC, masked"]
    return "<h2>Without a part of the input</h2>" + table(head, rows)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _cell(value: Any) -> str:
    return _text(_number(value))


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
