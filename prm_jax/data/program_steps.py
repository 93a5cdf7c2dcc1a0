"""Cutting a program into statements, so that process rewards fall on them."""

import ast
import re

_NEWLINE = re.compile(r"\r\n|\n|\r")
_BLOCK = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^\n]*\n", re.MULTILINE)


def statement_starts(text: str) -> list[int]:
    """Offsets at which the statements of a response begin.

    A statement is a simple statement with all of its lines, or the head of a compound one (``for x in y:``); the
    statements of its body follow. Decorators belong to what they decorate, comments and blank lines to the statement
    before them. Text outside a fenced block is cut by lines; so is a block that is not Python.

    Args:
      text: of a response; a program alone, or with explanations around fenced blocks.
    """
    fences = list(_BLOCK.finditer(text))
    if not fences:
        return _starts(text, 0)
    starts: list[int] = []
    position = 0
    for opened, closed in zip(fences[::2], [*fences[1::2], None], strict=False):
        starts += line_starts(text[position : opened.end()], position)
        end = len(text) if closed is None else closed.start()
        starts += _starts(text[opened.end() : end], opened.end())
        position = end
        if closed is None:
            return starts
    return starts + line_starts(text[position:], position)


def _starts(code: str, offset: int) -> list[int]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return line_starts(code, offset)
    begins = [*line_starts(code, 0), len(code)]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt):
            continue
        decorators = getattr(node, "decorator_list", [])
        if decorators:
            found.add(offset + begins[decorators[0].lineno - 1])
            continue
        # It may start in the middle of a line, after a semicolon or a colon; columns count bytes of UTF-8.
        line = code[begins[node.lineno - 1] : begins[node.lineno]]
        column = len(line.encode()[: node.col_offset].decode(errors="ignore"))
        found.add(offset + begins[node.lineno - 1] + (column if line[:column].strip() else 0))
    return sorted(found)


def line_starts(text: str, offset: int = 0) -> list[int]:
    """Offsets at which the lines of a text begin."""
    ends = [match.end() for match in _NEWLINE.finditer(text)]
    return [offset + start for start in (0, *ends) if start < len(text)]
