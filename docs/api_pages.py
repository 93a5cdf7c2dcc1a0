"""Makes the pages of the API reference: every public name of every room, with its signature and docstring.

Docstrings are Google style with Markdown inside, so the pages are Markdown and their sections become lists.
"""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import textwrap
from typing import Any

ROOMS = (
    "rl", "stats", "search", "pallas", "models", "rollouts", "verifiers", "data", "runs", "prm", "prime",
)  # fmt: skip
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Source|Example):[ ]*(.*)")
_ITEM = re.compile(r"([*\w, `.\[\]]+?): (.*)", re.DOTALL)


def write(folder: pathlib.Path) -> None:
    """Writes an index and a page per room; pages that have not changed keep their time."""
    folder.mkdir(exist_ok=True)
    rows = []
    for room in ROOMS:
        module = importlib.import_module(f"prm_jax.{room}")
        names = public_names(module)
        first = (inspect.getdoc(module) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| [prm_jax.{room}]({room}.md) | {len(names)} | {escape(first)} |")
        parts = [f"# prm_jax.{room}\n\n{markdown(inspect.getdoc(module) or '')}\n"]
        parts += [entry(f"prm_jax.{room}", name, getattr(module, name)) for name in names]
        _update(folder / f"{room}.md", "\n".join(parts))
    toctree = "```{toctree}\n:hidden:\n\n" + "\n".join(ROOMS) + "\n```\n"
    text = "(api-reference)=\n# API reference\n\nThe public names of every package, from their docstrings.\n\n"
    table = "| package | names | |\n|---|--:|---|\n" + "\n".join(rows)
    _update(folder / "index.md", f"{text}{toctree}\n{table}\n")


def public_names(module: Any) -> list[str]:
    """What the package exports, without its modules."""
    return [name for name in sorted(module.__all__, key=str.lower) if not inspect.ismodule(getattr(module, name))]


def entry(package: str, name: str, value: Any) -> str:
    """A directive of the Python domain for one name."""
    doc = markdown(inspect.getdoc(value) or "") if callable(value) or inspect.isclass(value) else ""
    if inspect.isclass(value):
        methods = "".join(_methods(value))
        kind, head = "class", f"{package}.{name}"
        doc += methods
    elif callable(value):
        kind, head = "function", f"{package}.{name}{signature(value)}"
    else:
        kind, head = "data", f"{package}.{name}"
    return f"## {name}\n\n`````{{py:{kind}}} {head}\n\n{doc}\n`````\n"


def signature(function: Any) -> str:
    """Arguments and result as the source writes them, not as types resolve."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return "(...)"
    if not isinstance(node, ast.FunctionDef):
        return "(...)"
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({arguments}){result}"


def _methods(cls: type) -> list[str]:
    found = []
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        if dataclasses.is_dataclass(cls) and name == "replace":  # made by a decorator
            continue
        found.append(
            f"\n\n````{{py:method}} {name}{signature(function)}\n\n{markdown(inspect.getdoc(function))}\n````\n"
        )
    return found


def markdown(doc: str) -> str:
    """A docstring as Markdown: sections as lists, formulas and examples as code, the rest escaped."""
    blocks: list[str] = []
    section = ""
    for block in doc.split("\n\n"):
        heading = _SECTION.match(block)
        if heading:
            section, first = heading.groups()
            rest = block[heading.start(2) :]
            body = textwrap.dedent(rest.partition("\n")[2]) if not first else rest
            blocks.append(f"**{section}:**" + (f" {escape(rest)}" if first else ""))
            if not first:
                blocks.append(_items(body, listed=section in ("Args", "Attributes", "Raises")))
        elif block.startswith("    "):
            code = textwrap.dedent(block).replace(">>> ", "")
            blocks.append(f"```text\n{code}\n```")
        elif block.startswith("  "):
            blocks.append(escape(textwrap.dedent(block)))
        else:
            blocks.append(escape(block))
    return "\n\n".join(blocks)


def _items(body: str, *, listed: bool) -> str:
    """Lines that start an argument become list items; what is indented further belongs to them."""
    if not listed:
        return escape(body)
    lines: list[str] = []
    for line in body.splitlines():
        found = None if line.startswith(" ") else _ITEM.match(line)
        if found:
            lines.append(f"- **{escape(found.group(1))}**: {escape(found.group(2))}")
        else:
            lines.append(f"  {escape(line.strip())}")
    return "\n".join(lines)


def escape(text: str) -> str:
    """Keeps Markdown from reading formulas as markup; leaves what stands between backticks."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_<>|$\[\]#])", r"\\\1", parts[i]).replace("\\\\", "\\")
    return "".join(parts)


def _update(path: pathlib.Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
