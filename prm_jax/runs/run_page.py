"""A run as one interactive HTML page: curves of its metrics and its samples, without a server or the network."""

import html
import json
import math
import pathlib
from typing import Any

from prm_jax.errors import UserError
from prm_jax.runs.metrics_log import read_metrics

_FIRST = (
    "eval/greedy_accuracy", "eval/sampled_accuracy", "prm_eval/first_error_f1", "prm/pairwise_accuracy",
    "rollout/solve_rate", "loss",
)  # fmt: skip
"""Metrics that are shown when the page opens."""
_SAMPLES = 300
"""Maximum number of samples on a page."""


def run_page(run: pathlib.Path) -> str:
    """The page of a run directory.

    Args:
      run: with metrics.jsonl, and samples.jsonl if the run sampled; an outcome-only run inside is shown, too.

    Returns:
      A complete HTML document.

    Raises:
      UserError: it is not a run directory, or there are no metrics.
    """
    curves = {"run": _curves(run)}
    if not curves["run"]:
        raise UserError(f"{run} has no metrics yet: wait for its first step, or give another run directory")
    if (run / "outcome_only" / "metrics.jsonl").is_file():
        curves["outcome only"] = _curves(run / "outcome_only")
    shown = [name for name in _FIRST if name in curves["run"]] or sorted(curves["run"])[:4]
    data = json.dumps({"curves": curves, "shown": shown, "samples": _samples(run / "samples.jsonl")}, allow_nan=False)
    name = html.escape(run.resolve().name)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Run {name}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>Run {name}</h1>\n{_BODY}\n"
        f'<script type="application/json" id="data">{data.replace("<", chr(92) + "u003c")}</script>\n'
        f"<script>{_SCRIPT}</script>\n</body></html>\n"
    )


def _curves(path: pathlib.Path) -> dict[str, list[list[float]]]:
    """Metric -> [[step, value], ...], without values that are not finite."""
    found: dict[str, list[list[float]]] = {}
    for row in read_metrics(path):
        for name, value in row.items():
            if name not in ("step", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append([row["step"], float(f"{value:.5g}")])
    return found


def _samples(path: pathlib.Path) -> list[dict[str, Any]]:
    """Samples spread over the run, at most `_SAMPLES`."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    stride = -(-len(lines) // _SAMPLES)
    kept = [json.loads(line) for line in lines[::stride]]
    names = ("step", "prompt", "response", "outcome", "steps")
    return [{name: _finite(record[name]) for name in names} for record in kept]


def _finite(value: Any) -> Any:
    """With numbers that are not finite as 0, which JSON for browsers cannot hold."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return 0.0 if isinstance(value, float) and not math.isfinite(value) else value


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #57606a;
  --a: #0072B2; --b: #D55E00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #8b949e; --a: #56B4E9; --b: #E69F00; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 1rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 1.6rem; }
#charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--soft); min-height: 1.5em; }
svg { width: 100%; height: auto; touch-action: pan-y; } svg text { font: 11px system-ui; fill: var(--soft); }
svg .axis { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.8; }
select, input { font: inherit; max-width: 100%; } input[type=range] { width: min(100%, 24rem); vertical-align: middle; }
article { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; margin: .6rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; font: 14px/1.6 ui-monospace, monospace; }
.soft { color: var(--soft); } .key { display: inline-block; width: 1.2rem; height: .25rem; vertical-align: middle; }
.piece { border-radius: 3px; padding: 0 .15em; }
""".strip()

_BODY = """
<p class="soft"><span class="key" style="background: var(--a)"></span> this run
<span id="other" hidden><span class="key" style="background: var(--b)"></span> outcome only</span></p>
<p><label>Add a metric <select id="metric"><option value="">choose</option></select></label></p>
<div id="charts"></div>
<section id="samples" hidden><h2>Samples</h2>
<p><label>Step <input type="range" id="step" min="0" value="0"> <output id="at"></output></label></p>
<p class="soft">Steps are coloured by process reward: green is positive, red is negative.</p>
<div id="shown"></div></section>
""".strip()

_SCRIPT = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent), NS = 'http://www.w3.org/2000/svg';
const names = Object.keys(data.curves), colors = ['var(--a)', 'var(--b)'];
document.getElementById('other').hidden = names.length < 2;
function element(name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}
const far = x => Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3);
const short = x => far(x) ? x.toExponential(1) : String(+x.toPrecision(3));
function chart(metric) {
  const lines = names.map(name => data.curves[name][metric] || []), points = lines.flat();
  const W = 340, H = 200, L = 46, R = 8, T = 8, B = 24;
  let [x0, x1] = [Math.min(...points.map(p => p[0])), Math.max(...points.map(p => p[0]))];
  let [y0, y1] = [Math.min(...points.map(p => p[1])), Math.max(...points.map(p => p[1]))];
  if (x0 === x1) x1 = x0 + 1;
  if (y0 === y1) { y0 -= 0.5; y1 += 0.5; }
  const x = v => L + (W - L - R) * (v - x0) / (x1 - x0), y = v => H - B - (H - T - B) * (v - y0) / (y1 - y0);
  const svg = element('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': metric});
  for (const v of [y0, (y0 + y1) / 2, y1]) {
    svg.append(element('line', {class: 'axis', x1: L, x2: W - R, y1: y(v), y2: y(v)}));
    svg.append(element('text', {x: L - 5, y: y(v) + 4, 'text-anchor': 'end'}, short(v)));
  }
  svg.append(element('text', {x: x(x0), y: H - 6}, x0));
  svg.append(element('text', {x: x(x1), y: H - 6, 'text-anchor': 'end'}, x1));
  lines.forEach((line, i) => svg.append(element('polyline', {stroke: colors[i % 2],
    points: line.map(p => `${x(p[0])},${y(p[1])}`).join(' ')})));
  const rule = element('line', {class: 'axis', y1: T, y2: H - B, visibility: 'hidden'});
  svg.append(rule);
  const figure = document.createElement('figure'), caption = document.createElement('figcaption');
  caption.textContent = metric;
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), place = (event.clientX - box.left) / box.width * W;
    const at = x0 + (x1 - x0) * (place - L) / (W - L - R), nearer = (a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at);
    const near = lines.map(line => line.length ? line.reduce((a, b) => nearer(a, b) ? b : a) : null);
    if (!near[0]) return;
    rule.setAttribute('x1', x(near[0][0]));
    rule.setAttribute('x2', x(near[0][0]));
    rule.setAttribute('visibility', 'visible');
    caption.textContent = `${metric}, step ${near[0][0]}: ` + near.filter(p => p).map(p => short(p[1])).join(' and ');
  });
  svg.addEventListener('pointerleave', () => {
    rule.setAttribute('visibility', 'hidden');
    caption.textContent = metric;
  });
  figure.append(svg, caption);
  document.getElementById('charts').append(figure);
}
data.shown.forEach(chart);
const metric = document.getElementById('metric');
Object.keys(data.curves.run).sort().forEach(name => metric.append(new Option(name, name)));
metric.addEventListener('change', () => { if (metric.value) chart(metric.value); metric.value = ''; });
const steps = [...new Set(data.samples.map(s => s.step))].sort((a, b) => a - b);
const slider = document.getElementById('step');
const scale = Math.max(...data.samples.flatMap(s => s.steps.map(p => Math.abs(p[1]))), 1e-9);
function samples() {
  const at = steps[slider.value], shown = document.getElementById('shown');
  document.getElementById('at').textContent = at;
  shown.replaceChildren(...data.samples.filter(s => s.step === at).map(sample => {
    const [article, head, body] = ['article', 'div', 'pre'].map(name => document.createElement(name));
    head.className = 'soft';
    const verdict = sample.outcome > 0.5 ? 'right' : 'wrong';
    head.textContent = `${sample.prompt.trim()}   ${verdict} (${short(sample.outcome)})`;
    if (!sample.steps.length) body.textContent = sample.response;
    sample.steps.forEach(([text, reward]) => {
      const piece = document.createElement('span'), rgb = reward >= 0 ? '46,160,67' : '248,81,73';
      piece.className = 'piece';
      piece.title = short(reward);
      piece.style.background = `rgba(${rgb},${(0.6 * Math.min(1, Math.abs(reward) / scale)).toFixed(2)})`;
      piece.textContent = text;
      body.append(piece);
    });
    article.append(head, body);
    return article;
  }));
}
if (steps.length) {
  document.getElementById('samples').hidden = false;
  slider.max = steps.length - 1;
  slider.value = slider.max;
  slider.addEventListener('input', samples);
  samples();
}
"""
