"""Finding the program in a response."""

import ast
import re

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n]*\n(.*?)^[ \t]*\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
_OPEN_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})", re.MULTILINE)
_PYTHON = ("", "python", "python3", "py", "py3")
MAX_PROGRAM_CHARACTERS = 100_000
"""Longer responses have no program."""


def find_program(response: str, *, names: tuple[str, ...] = (), prefix: str = "") -> str | None:
    """The program of a response.

    The rule: text up to the last ``</think>`` is not searched. If there are complete fenced blocks of Python (or of no
    named language), the program is the last one that defines one of `names`, or the last one when none does or no name
    is given; blocks before it are explanation and do not run. A response without any fence is the program itself if it
    is Python; with a `prefix` it may also continue that text.

    Args:
      response: of a model.
      names: functions or classes that the tests need.
      prefix: code that a response may continue, as the prompts of HumanEval do; also imports and helpers in it are put
        before a program that does not continue it.

    Returns:
      Code, or None where there is none: no complete block, or text that is not Python.
    """
    if len(response) > MAX_PROGRAM_CHARACTERS:
        return None
    text = response.rpartition("</think>")[2]
    if _OPEN_FENCE.search(text):
        blocks = [match[3] for match in _FENCE.finditer(text) if match[2].lower() in _PYTHON]
        if not blocks:
            return None
        defining = [block for block in blocks if _defines(block, names)]
        chosen = (defining or blocks)[-1]
        return _joined(prefix, chosen, names)
    return _joined(prefix, text, names)


def _joined(prefix: str, code: str, names: tuple[str, ...]) -> str | None:
    """The code after the parts of the prefix that it needs; None when neither form is Python."""
    if not prefix:
        return code if _parses(code) and code.strip() else None
    if _parses(code) and (_defines(code, names) or not names):
        return f"{_preamble(prefix, names)}\n{code}"
    continued = prefix + ("" if prefix.endswith("\n") else "\n") + code
    return continued if _parses(continued) else None


def _preamble(prefix: str, names: tuple[str, ...]) -> str:
    """What a prefix defines apart from `names`."""
    tree = _parsed(prefix) or _parsed(prefix + "\n    pass\n")
    if tree is None:
        return ""
    kept = [node for node in tree.body if getattr(node, "name", None) not in names]
    return "\n".join(ast.unparse(node) for node in kept)


def helpers_of(prefix: str, name: str) -> str:
    """Imports and helpers that a prefix defines besides the function `name`, which its tests may use."""
    return _preamble(prefix, (name,))


def _defines(code: str, names: tuple[str, ...]) -> bool:
    tree = _parsed(code)
    if tree is None or not names:
        return False
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
            if isinstance(node, ast.ClassDef) and node.name == "Solution":
                defined.update(getattr(item, "name", "") for item in node.body)
        elif isinstance(node, ast.Assign):
            defined.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined.update(alias.asname or alias.name for alias in node.names)
    return not defined.isdisjoint(names)


def _parses(code: str) -> bool:
    return _parsed(code) is not None


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
