"""Samples of a run as one HTML page: each response with its steps coloured by their process rewards."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LIMIT = 400
"""Maximum number of samples on a page; the newest are shown."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #57606a;
        --right: #1a7f37; --wrong: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #8b949e;
          --right: #3fb950; --wrong: #f85149; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
       max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; border-top: 1px solid var(--line);
       padding-top: 1rem; }
article { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; margin: .8rem 0; }
header { color: var(--soft); font-size: .9rem; } .right { color: var(--right); }
.wrong { color: var(--wrong); } .prompt { color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; font: 14px/1.5 ui-monospace, monospace; }
.step { border-radius: 3px; padding: 0 .15em; }
mark { background: none; color: inherit; border: 1px dashed var(--soft); border-radius: 3px; }
.step small { color: var(--soft); font-size: .75em; }
""".strip()


def samples_page(title: str, records: Iterable[Mapping[str, Any]]) -> str:
    """The page of a run's samples.

    Args:
      title: name of the run.
      records: as in samples.jsonl: step, prompt, response, outcome, steps [(text, reward)], info.

    Returns:
      A complete HTML document without external resources; the newest step comes first.
    """
    newest = list(records)[-_LIMIT:]
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for record in newest:
        by_step.setdefault(int(record["step"]), []).append(record)
    scale = max((abs(_number(reward)) for record in newest for _, reward in record["steps"]), default=0.0)
    sections = []
    for step in sorted(by_step, reverse=True):
        articles = "\n".join(_article(record, scale) for record in by_step[step])
        sections.append(f"<h2>Step {step}</h2>\n{articles}")
    legend = (
        "Steps are coloured by process reward: green is positive, red is negative; the small number is the reward."
        if scale
        else "This run has no process rewards."
    )
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Samples of {name}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{_STYLE}\n</style></head>\n'
        f"<body><h1>Samples of {name}</h1>\n<p>{legend}</p>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _article(record: Mapping[str, Any], scale: float) -> str:
    outcome = _number(record["outcome"])
    verdict = "right" if outcome > 0.5 else "wrong"
    facts = "".join(f" · {html.escape(str(k))}: {html.escape(str(v))}" for k, v in record["info"].items())
    if scale and not record["steps"]:
        facts += " · not scored"
    forced = [(int(start), int(end)) for start, end in record.get("forced", ())]
    if forced:
        facts += " · boxed text was not written by the model"
    steps, position = [], 0
    for text, reward in record["steps"]:
        steps.append(_step(_marked(text, position, forced), _number(reward), scale))
        position += len(text)
    body = "".join(steps) or _marked(record["response"], 0, forced)
    return (
        f'<article><header><span class="{verdict}">{verdict} ({outcome:g})</span>{facts}</header>\n'
        f"<pre class='prompt'>{html.escape(record['prompt'].rstrip())}</pre>\n<pre>{body}</pre></article>"
    )


def _marked(text: str, start: int, forced: Sequence[tuple[int, int]]) -> str:
    """Escaped text that begins at a character of the response, with the forced spans in boxes."""
    parts, position = [], 0
    for begin, end in forced:
        first, last = max(begin - start, position), min(end - start, len(text))
        if first < last:
            parts += [html.escape(text[position:first]), f"<mark>{html.escape(text[first:last])}</mark>"]
            position = last
    return "".join([*parts, html.escape(text[position:])])


def _step(shown: str, reward: float, scale: float) -> str:
    strength = min(1.0, abs(reward) / scale) if scale else 0.0
    colour = "46, 160, 67" if reward >= 0 else "248, 81, 73"
    tail = "\n" if shown.endswith("\n") else ""
    return (
        f'<span class="step" style="background: rgba({colour}, {0.5 * strength:.2f})" title="{reward:+.4f}">'
        f"{shown.removesuffix(tail) if tail else shown}<small> {round(reward, 2) + 0.0:+.2f}</small></span>{tail}"
    )


def _number(value: Any) -> float:
    """A number of a record, in which non-finite ones are text; those become 0."""
    number = float(value)
    return number if number - number == 0 else 0.0
