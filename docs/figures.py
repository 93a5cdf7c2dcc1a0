"""Draws the figures of the concept pages and the gallery into docs/images: `make figures`.

What they show is computed by the library; experiments draw their own figures.
"""

import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from prm_jax import rl, stats

IMAGES = pathlib.Path(__file__).parent / "images"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


def main() -> None:
    """All figures."""
    implicit_rewards()
    credit_forms()
    tree_arrays()
    reliability()
    samples()


def implicit_rewards() -> None:
    """Token rewards of a right and a wrong response, where the reward model is the reference tilted by the outcome."""
    tokens = ["7", "+", "5", "=", "12;", "12", "+", "9", "=", ("21", "11")]
    reference, outcome = np.array([0.7, 0.3]), np.array([1.0, -1.0])
    tilted = reference * np.exp(outcome)
    tilted /= tilted.sum()
    logp, ref_logp = np.zeros((2, len(tokens))), np.zeros((2, len(tokens)))
    logp[:, -1], ref_logp[:, -1] = np.log(tilted), np.log(reference)
    rewards = np.asarray(rl.implicit_token_rewards(logp, ref_logp, np.ones(logp.shape, bool), beta=1.0))
    figure, axes = _figure(7.2, 2.6, 1, 2)
    for axis, row, title, color in zip(axes, (0, 1), ("right", "wrong"), (BLUE, ORANGE), strict=True):
        axis.bar(range(len(tokens)), rewards[row], color=color)
        axis.set_xticks(range(len(tokens)), [t if isinstance(t, str) else t[row] for t in tokens])
        axis.set_title(f"{title}: sum {rewards[row].sum():+.2f}", loc="left", fontsize=9)
        axis.set_ylim(-1.8, 1.0)
    axes[0].set_ylabel("token reward", fontsize=8)
    _save(figure, "implicit_rewards")


def credit_forms() -> None:
    """Four forms of credit for one response of five steps whose third one is wrong."""
    rewards, mask = jnp.array([[0.1, 0.2, -1.0, 0.1, 0.1]]), jnp.ones((1, 5), bool)
    ids = jnp.arange(5)[None]
    forms = {
        "return": rl.discounted_returns(rewards, mask),
        "step": rl.step_credit(rewards, ids, num_steps=5),
        "cumulative": rl.cumulative_credit(rewards, ids, num_steps=5),
        "min": rl.min_credit(rewards, ids, mask, num_steps=5, temperature=0.1),
    }
    figure, axes = _figure(8.4, 2.3, 1, 4)
    for axis, (name, credit) in zip(axes, forms.items(), strict=True):
        values = np.asarray(credit)[0]
        axis.bar(range(1, 6), values, color=[BLUE if v >= 0 else ORANGE for v in values])
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_ylim(-1.15, 0.4)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set_xlabel("step", fontsize=8)
    axes[0].set_ylabel("credit", fontsize=8)
    _save(figure, "credit_forms")


def tree_arrays() -> None:
    """A tree of five nodes beside the arrays that hold it."""
    figure, (axis,) = _figure(7.2, 2.6, 1, 1)
    axis.axis("off")
    places = {0: (1.5, 2), 1: (0.6, 1), 2: (2.4, 1), 3: (1.6, 0), 4: (3.2, 0)}
    parent = {1: 0, 2: 0, 3: 2, 4: 2}
    for child, above in parent.items():
        axis.plot(*zip(places[child], places[above], strict=True), color=GREY, lw=1.2, zorder=1)
    for node, (x, y) in places.items():
        on_path = node in (0, 2, 4)
        axis.scatter(x, y, s=420, color=BLUE if on_path else "white", edgecolor=BLUE, zorder=2)
        axis.text(x, y, str(node), ha="center", va="center", color="white" if on_path else BLUE, zorder=3)
    rows = {
        "slot": [0, 1, 2, 3, 4, ""],
        "parent": [-1, 0, 0, 2, 2, ""],
        "first_child": [1, -1, 3, -1, -1, ""],
        "visits": [1, 0, 1, 0, 1, ""],
    }
    for line, (name, cells) in enumerate(rows.items()):
        y = 1.75 - 0.5 * line
        axis.text(5.6, y, name, ha="right", va="center", family="monospace", fontsize=9)
        for i, cell in enumerate(cells):
            box = (5.8 + 0.62 * i, y - 0.18)
            axis.add_patch(FancyBboxPatch(box, 0.56, 0.36, boxstyle="round,pad=0.01", fc="white", ec=GREY, lw=0.8))
            axis.text(box[0] + 0.28, y, str(cell), ha="center", va="center", fontsize=9)
    axis.set_xlim(0, 9.8)
    axis.set_ylim(-0.5, 2.4)
    _save(figure, "tree_arrays")


def reliability() -> None:
    """Reliability of an overconfident score before and after Platt and isotonic scaling, on other rows."""
    keys = jax.random.split(jax.random.key(0), 2)
    logits = jax.random.normal(keys[0], (8000,))
    right = jax.random.bernoulli(keys[1], jax.nn.sigmoid(logits)).astype(jnp.float32)
    score = jax.nn.sigmoid(3.0 * logits + 0.5)
    fit, test = slice(0, 4000), slice(4000, None)
    platt = stats.fit_platt(3.0 * logits[fit] + 0.5, right[fit])
    isotonic = stats.fit_isotonic(score[fit], right[fit])
    forms = {
        "raw": score[test],
        "Platt": stats.apply_platt(platt, 3.0 * logits[test] + 0.5),
        "isotonic": stats.apply_isotonic(isotonic, score[test]),
    }
    figure, axes = _figure(7.2, 2.6, 1, 3)
    for axis, (name, confidence) in zip(axes, forms.items(), strict=True):
        bins = stats.reliability_bins(confidence, right[test], num_bins=10)
        shown = np.asarray(bins.size) > 20
        axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
        axis.plot(np.asarray(bins.confidence)[shown], np.asarray(bins.accuracy)[shown], "o-", ms=4, color=GREEN)
        error = float(stats.calibration_error(confidence, right[test], num_bins=10))
        axis.set_title(f"{name}: error {error:.3f}", loc="left", fontsize=9)
        axis.set_xlabel("stated", fontsize=8)
    axes[0].set_ylabel("observed", fontsize=8)
    _save(figure, "reliability")


def samples() -> None:
    """Steps of a run's samples coloured by process reward, at its first and last sampled step."""
    page = (IMAGES.parent / "gallery" / "run.html").read_text(encoding="utf-8")
    records = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])["samples"]
    steps = sorted({record["step"] for record in records})
    scale = max(abs(reward) for record in records for _, reward in record["steps"])
    for name, step in (("samples_first", steps[0]), ("samples_last", steps[-1])):
        own = [record for record in records if record["step"] == step]
        _draw_samples(own[:4], scale, name)


def _draw_samples(records: list[dict[str, Any]], scale: float, name: str) -> None:
    figure, (axis,) = _figure(7.6, 0.55 * len(records) + 0.1, 1, 1)
    axis.axis("off")
    axis.set_xlim(0, 60)
    axis.set_ylim(-0.5, len(records) - 0.4)
    for row, record in enumerate(reversed(records)):
        right = record["outcome"] > 0.5
        axis.text(0, row, record["prompt"].strip(), family="monospace", fontsize=9, color=GREY, va="center")
        axis.text(58, row, "right" if right else "wrong", fontsize=8, color=GREEN if right else ORANGE, va="center")
        x = 12.5
        for text, reward in record["steps"]:
            width = 1.02 * len(text) + 0.3
            fill = (0.18, 0.63, 0.26) if reward >= 0 else (0.97, 0.32, 0.29)
            box = FancyBboxPatch((x, row - 0.2), width, 0.4, boxstyle="round,pad=0.02", lw=0)
            box.set_facecolor((*fill, 0.6 * abs(reward) / scale))
            axis.add_patch(box)
            axis.text(x + width / 2, row, text, family="monospace", fontsize=9, ha="center", va="center")
            axis.text(x + width / 2, row - 0.36, f"{reward:+.2f}", fontsize=6, ha="center", va="center", color=GREY)
            x += width + 0.4
    _save(figure, name)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
