"""Search trees as one interactive HTML page, without a server and without anything from the network."""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prm_jax.prm.page import STYLE
from prm_jax.search.drawn import DrawnTree
from prm_jax.search.partials import Partial


def tree_record(tree: DrawnTree, text: Callable[[Partial], str]) -> list[dict[str, Any]]:
    """A drawn tree as plain JSON: parent, the text of the step, visits, value, and whether the solution ends there."""
    whole = [text(node.partial) for node in tree]
    return [
        {
            "parent": node.parent,
            "step": whole[i].removeprefix(whole[node.parent]) if node.parent >= 0 else "",
            "visits": node.visits,
            "value": node.value,
            "finished": node.partial.finished,
        }
        for i, node in enumerate(tree)
    ]


def trees_page(title: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The page of the trees of a search.

    Args:
      title: what was searched.
      lines: results of a search with "id", "tree" (see `tree_record`), "answer", "correct", and "prompt" if known.

    Returns:
      A complete HTML document.
    """
    names = ("id", "prompt", "answer", "correct", "tokens", "tree")
    data = json.dumps([{name: line.get(name) for name in names} for line in lines]).replace("<", "\\u003c")
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}{_STYLE}</style></head>\n'
        f"<body><h1>{name}</h1>\n{_BODY}\n"
        f'<script type="application/json" id="data">{data}</script>\n<script>{_SCRIPT}</script>\n</body></html>\n'
    )


_STYLE = """
body { max-width: 84rem; } select { font: inherit; max-width: 100%; } .tree { overflow: auto; max-height: 75vh;
  border: 1px solid var(--line); border-radius: 4px; }
svg { width: auto; max-width: none; } svg .edge { fill: none; stroke: var(--strong); }
svg g.node { cursor: pointer; } svg g.node:focus { outline: none; } svg g.node:focus circle { stroke-width: 3; }
svg circle { stroke: var(--text); stroke-width: 1; } svg .end { stroke-dasharray: 2 2; }
svg text { font: 12px ui-monospace, monospace; } svg text.soft { fill: var(--soft); font-size: 10px; }
#detail { min-height: 5rem; }
"""

_BODY = """
<p class="note">A node is a prefix: its size shows visits, its colour the value from low (orange) to high (blue); a
dashed rim ends a solution. Select a node to read its prefix and to fold what is below it.</p>
<p><label>Problem <select id="problem"></select></label> <span id="facts"></span></p>
<div class="tree"><svg id="tree" role="tree" aria-label="search tree"></svg></div>
<div id="detail" aria-live="polite"></div>
""".strip()

_SCRIPT = """
'use strict';
const all = JSON.parse(document.getElementById('data').textContent);
const svg = document.getElementById('tree'), pick = document.getElementById('problem');
const detail = document.getElementById('detail'), NS = 'http://www.w3.org/2000/svg';
let folded = new Set(), current = 0;
function element(name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}
function color(value, low, high) {
  if (value === null) return 'none';
  const t = high > low ? (value - low) / (high - low) : 0.5, to = t < 0.5 ? [230, 159, 100] : [110, 170, 220];
  const s = Math.abs(t - 0.5) * 2;
  return `rgb(${to.map(c => Math.round(255 + (c - 255) * s)).join(',')})`;
}
function label(text) {
  const flat = text.replace(/\\s+/g, ' ').trim();
  return flat.length > 26 ? flat.slice(0, 25) + '\\u2026' : flat;
}
function show(index) {
  const nodes = all[current].tree, path = [];
  for (let i = index; i >= 0; i = nodes[i].parent) path.unshift(i);
  const node = nodes[index], value = node.value === null ? 'not scored' : node.value.toFixed(3);
  detail.replaceChildren();
  const facts = document.createElement('p'), body = document.createElement('pre');
  facts.textContent = `visits ${node.visits}, value ${value}` + (node.finished ? ', end of a solution' : '');
  body.textContent = (all[current].prompt || '') + path.map(i => nodes[i].step).join('');
  detail.append(facts, body);
}
function draw() {
  const nodes = all[current].tree, children = nodes.map(() => []), at = nodes.map(() => null);
  nodes.forEach((node, i) => { if (node.parent >= 0) children[node.parent].push(i); });
  const values = nodes.filter(n => n.value !== null).map(n => n.value);
  const low = Math.min(...values), high = Math.max(...values);
  const most = Math.max(1, ...nodes.map(n => n.visits));
  let rows = 0, deepest = 0;
  const stack = [[0, 0, false]];
  while (stack.length) {
    const [i, depth, back] = stack.pop(), open = folded.has(i) ? [] : children[i];
    if (back) {
      at[i] = [depth, (at[open[0]][1] + at[open[open.length - 1]][1]) / 2];
    } else if (!open.length) {
      at[i] = [depth, rows++];
      deepest = Math.max(deepest, depth);
    } else {
      stack.push([i, depth, true]);
      [...open].reverse().forEach(child => stack.push([child, depth + 1, false]));
    }
  }
  const x = depth => 24 + 250 * depth, y = row => 26 + 40 * row;
  svg.setAttribute('width', x(deepest) + 260);
  svg.setAttribute('height', y(rows));
  svg.replaceChildren();
  nodes.forEach((node, i) => {
    if (!at[i] || node.parent < 0) return;
    const [px, py] = [x(at[node.parent][0]), y(at[node.parent][1])], [cx, cy] = [x(at[i][0]), y(at[i][1])];
    svg.append(element('path', {class: 'edge', d: `M${px},${py} C${px + 40},${py} ${cx - 60},${cy} ${cx},${cy}`,
      'stroke-width': 0.6 + 3 * node.visits / most}));
  });
  nodes.forEach((node, i) => {
    if (!at[i]) return;
    const group = element('g', {class: 'node', tabindex: 0, role: 'treeitem',
      transform: `translate(${x(at[i][0])},${y(at[i][1])})`});
    group.append(element('circle', {r: 4 + 7 * Math.sqrt(node.visits / most), class: node.finished ? 'end' : '',
      fill: color(node.value, low, high)}));
    group.append(element('text', {x: 6, y: -12}, label(node.step) + (folded.has(i) ? ' \\u25b8' : '')));
    const told = node.visits + (node.value === null ? '' : ' \\u00b7 ' + node.value.toFixed(2));
    group.append(element('text', {x: 13, y: 15, class: 'soft'}, told));
    const act = () => {
      show(i);
      if (children[i].length) { folded.has(i) ? folded.delete(i) : folded.add(i); draw(); }
    };
    group.addEventListener('click', act);
    group.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault(); act(); } });
    svg.append(group);
  });
}
function open(index) {
  current = index;
  folded = new Set();
  const line = all[index];
  document.getElementById('facts').textContent =
    `${line.tree.length} nodes, answer ${line.answer} (${line.correct > 0.5 ? 'right' : 'wrong'})`;
  draw();
  show(0);
}
all.forEach((line, i) => pick.append(new Option(`${line.id}` + (line.prompt ? ': ' + label(line.prompt) : ''), i)));
pick.addEventListener('change', () => open(Number(pick.value)));
if (all.length) open(0);
"""
