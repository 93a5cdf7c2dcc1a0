"""HTML pages with inline style and no script; every text that a model wrote is escaped."""

import html
import pathlib
from collections.abc import Sequence

import numpy as np

from prm_jax.prm.score import Scored

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #555; --line: #ddd; --strong: #999; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --soft: #aaa; --line: #3a3d42; --strong: #777; --page: #17191c; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.note, small, figcaption { color: var(--soft); }
article { border-top: 1px solid var(--line); padding: .8rem 0; }
header { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; }
header b { font-size: 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; margin: .3rem 0; }
.prompt { border-left: 3px solid var(--strong); padding-left: .6rem; }
.step { display: grid; grid-template-columns: 4.6rem 1.2rem minmax(0, 1fr); gap: .5rem; padding: .15rem .4rem;
  margin: 2px 0; border: 1px solid #0001; border-radius: 3px; color: #1b1b1b; }
.step span { font: 13px/1.45 ui-monospace, monospace; text-align: right; margin: .3rem 0; }
.scale { display: inline-block; width: 12rem; max-width: 40vw; height: .8rem; vertical-align: middle;
  border: 1px solid var(--strong); background: linear-gradient(to right, rgb(230,159,100), #fff, rgb(110,170,220)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; overflow-wrap: normal; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; border-bottom: 2px solid var(--strong); }
table.facts td { text-align: left; vertical-align: top; }
figure { margin: 1rem 0; width: 26.25rem; max-width: 100%; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--text); } svg .rule { stroke: var(--line); }
svg .guide { stroke: var(--strong); }
ul.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .2rem 0; padding: 0;
  font-size: 13px; }
ul.legend i { display: inline-block; width: 1.2rem; height: .25rem; vertical-align: middle; margin-right: .4rem; }
figcaption { font-size: 13px; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 .7rem; }
  .step { grid-template-columns: 3.6rem 1rem minmax(0, 1fr); gap: .3rem; padding: .15rem .3rem; }
  .step span, pre { font-size: 12px; } th, td { padding: .2rem .4rem; }
}
"""


def model_name(path: str | pathlib.Path) -> str:
    """What to call a model on a page: its directory, with the run's where that is only called model or prm."""
    resolved = pathlib.Path(path)
    parts = [part for part in resolved.parts if part not in (".", "..", "/")] or [str(path)]
    return "/".join(parts[-2:]) if parts[-1] in ("model", "prm", "policy", "checkpoint") else parts[-1]


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML already, `title` is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def scores_page(scored: Sequence[Scored], *, title: str, output: str, limit: int = 200) -> str:
    """A page that shows solutions with their steps coloured by score.

    Args:
      scored: solutions with scores.
      title: of the page.
      output: what a step's score is: "probability", "value", "log_ratio" or "score".
      limit: solutions shown; the page says how many more there are.
    """
    shown = scored[:limit]
    low, middle, high = scale(scored, output)
    more = f" The first {len(shown)} are shown." if len(scored) > len(shown) else ""
    legend = (
        f'<p class="note">{len(scored)} solutions.{more} Steps are coloured by their score, '
        f"a {output.replace('_', '-')}: "
        f'{low:.3g} <span class="scale"></span> {high:.3g}, white at {middle:.3g}. A mark before a step is its label, '
        "where one is known: &#10003; right, &#10007; wrong.</p>"
    )
    sign = "" if output in ("probability", "value") else "+"
    return document(title, legend + "\n".join(_article(one, low, middle, high, sign) for one in shown))


def scale(scored: Sequence[Scored], output: str) -> tuple[float, float, float]:
    """(lowest, middle, highest) of the colours: [0, 1/2, 1] for chances, symmetric around 0 for anything else."""
    if output in ("probability", "value"):
        return 0.0, 0.5, 1.0
    values = np.abs(np.concatenate([np.asarray(one.steps) for one in scored]))
    bound = float(np.quantile(values, 0.95)) or float(values.max()) or 1.0
    return -bound, 0.0, bound


def colour(value: float, low: float, middle: float, high: float) -> str:
    """CSS colour of a score: orange at the bottom, white in the middle, blue at the top; ends are clipped."""
    span = (high - middle) if value >= middle else (middle - low)
    strength = min(1.0, abs(value - middle) / span) if span else 0.0
    end = (110, 170, 220) if value >= middle else (230, 159, 100)
    return "rgb({},{},{})".format(*(round(255 + (c - 255) * strength) for c in end))


def text_of(prompt: object) -> str:
    """A prompt for reading: its text, its messages, or its token ids."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], dict):
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
    return str(prompt)


def _article(one: Scored, low: float, middle: float, high: float, sign: str) -> str:
    record = one.record
    known = "" if record.outcome is None else f"<span>outcome {record.outcome:g}</span>"
    steps = []
    for index, (text, value) in enumerate(zip(record.steps, one.steps, strict=True)):
        label = record.labels[index] if record.labels is not None else None
        mark = "" if label is None else ("&#10003;" if label > 0.5 else "&#10007;")
        said = "" if label is None else f' title="label {label:g}"'
        span = "" if not one.intervals else ", {:.3f} to {:.3f}".format(*one.intervals[index])
        shade = colour(value, low, middle, high)
        steps.append(
            f'<div class="step" style="background:{shade}" title="step {index}: {value:.6g}{span}">'
            f"<span>{value:{sign}.4f}</span><span{said}>{mark}</span><pre>{html.escape(text.strip())}</pre></div>"
        )
    return (
        f"<article><header><b>{html.escape(record.id)}</b><span>score {one.response:.4f}</span>{known}</header>"
        f'<pre class="prompt">{html.escape(text_of(record.prompt))}</pre>{"".join(steps)}</article>'
    )
