"""Small edits of a program, each within one statement: what a teacher of process rewards for code would try.

PRLCoder (arXiv 2502.01715) mutates or refactors single lines of right solutions and labels them by running the tests.
Whether an edit keeps the meaning is not decided here; the tests decide.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

from prm_jax.data.program_steps import line_starts

Kind = Literal["mutate", "refactor"]


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
      kind: ``"mutate"``: meant to change the meaning; ``"refactor"``: meant to keep it.
      start, end: characters of the program that are replaced.
      text: what replaces them.
    """

    kind: Kind
    start: int
    end: int
    text: str

    def apply(self, program: str) -> str:
        """The edited program."""
        return program[: self.start] + self.text + program[self.end :]


_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Add, ast.FloorDiv), ast.Div: (ast.FloorDiv, ast.Mult),
    ast.FloorDiv: (ast.Div, ast.Mod), ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,), ast.BitXor: (ast.BitAnd,), ast.LShift: (ast.RShift,), ast.RShift: (ast.LShift,),
}  # fmt: skip
_FUNCTIONS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "sum": "len", "len": "sum", "abs": "int",
}  # fmt: skip
_METHODS = {
    "append": "extend", "lower": "upper", "upper": "lower", "startswith": "endswith", "endswith": "startswith",
    "lstrip": "rstrip", "rstrip": "lstrip", "keys": "values", "values": "keys",
}  # fmt: skip

_HEAD = "if True:\n"
_SPACES = re.compile(r" ?([-+*/%=<>!,:&|^@]+) ?")
_SPACED = re.compile(r" [-+*/%=<>!&|^@]+ |, ")


def find_edits(program: str) -> list[Edit]:
    """Every edit that is known for a program, in the order of its text; [] for what is not Python.

    Edits have no spaces around operators where the program has none, and no parentheses around them where none are
    needed, so that labels of edits are not labels of a style.

    Args:
      program: its source, or the indented body of a function; edits inside formatted strings are left out, since their
        positions are not known everywhere.
    """
    head = _HEAD if program[:1] in (" ", "\t") else ""
    try:
        tree = ast.parse(head + program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    finder = _Finder(head + program)
    finder.visit(tree)
    moved = {
        dataclasses.replace(edit, start=edit.start - len(head), end=edit.end - len(head)): plain
        for edit, plain in finder.edits
        if edit.start >= len(head)
    }
    found = [edit for edit in moved if program[edit.start : edit.end] != edit.text]
    return sorted(found, key=lambda edit: (edit.start, edit.end, moved[edit]))


class _Finder(ast.NodeVisitor):
    """Collects edits."""

    def __init__(self, program: str) -> None:
        self.program, self.begins = program, line_starts(program)
        self.edits: list[tuple[Edit, str]] = []  # with the text before it was adapted to the program's style
        self.spaced = _SPACED.search(program) is not None
        self.statement = (0, 0)

    def visit(self, node: ast.AST) -> None:
        """Remembers the lines of the innermost statement."""
        if not isinstance(node, ast.stmt) or node.end_lineno is None:
            return super().visit(node)
        before, self.statement = self.statement, (node.lineno - 1, node.end_lineno)
        super().visit(node)
        self.statement = before

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Formatted strings stay as they are."""

    def visit_Compare(self, node: ast.Compare) -> None:
        """Other comparisons; mirrored operands."""
        if len(node.ops) == 1:
            operator = type(node.ops[0])
            for other in _COMPARISONS.get(operator, ()):
                self._put("mutate", node, ast.Compare(node.left, [other()], node.comparators))
            if operator in _MIRRORED:
                mirrored = ast.Compare(node.comparators[0], [_MIRRORED[operator]()], [node.left])
                self._put("refactor", node, mirrored)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Other operators; swapped operands."""
        for other in _OPERATORS.get(type(node.op), ()):
            self._put("mutate", node, ast.BinOp(node.left, other(), node.right))
        if isinstance(node.op, ast.Add | ast.Mult):
            self._put("refactor", node, ast.BinOp(node.right, node.op, node.left))
        elif isinstance(node.op, ast.Sub | ast.Div | ast.Mod):
            self._put("mutate", node, ast.BinOp(node.right, node.op, node.left))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """And for or; De Morgan."""
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._put("mutate", node, ast.BoolOp(other, node.values))
        negated: list[ast.expr] = [ast.UnaryOp(ast.Not(), value) for value in node.values]
        self._put("refactor", node, ast.UnaryOp(ast.Not(), ast.BoolOp(other, negated)))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Without the operator."""
        if isinstance(node.op, ast.Not | ast.USub):
            self._put("mutate", node, node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Neighbouring numbers, the other truth value."""
        if isinstance(node.value, bool):
            self._put("mutate", node, ast.Constant(not node.value))
        elif isinstance(node.value, int):
            for other in (node.value + 1, node.value - 1):
                self._put("mutate", node, ast.Constant(other))

    def visit_Call(self, node: ast.Call) -> None:
        """Related functions, shorter ranges."""
        if isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            self._put("mutate", node.func, ast.Name(_FUNCTIONS[node.func.id]))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            self._put("mutate", node.func, ast.Attribute(node.func.value, _METHODS[node.func.attr]))
        if isinstance(node.func, ast.Name) and node.func.id == "range" and len(node.args) == 1:
            one = ast.Constant(1)
            self._put("mutate", node, ast.Call(node.func, [one, node.args[0]], []))
            self._put("mutate", node, ast.Call(node.func, [ast.BinOp(node.args[0], ast.Sub(), one)], []))
            self._put("refactor", node, ast.Call(node.func, [ast.Constant(0), node.args[0]], []))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Reversed slices of the same length."""
        if isinstance(node.slice, ast.Slice) and node.slice.step is None and isinstance(node.ctx, ast.Load):
            part = ast.Slice(node.slice.upper, node.slice.lower)
            self._put("mutate", node, ast.Subscript(node.value, part, node.ctx))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """The other branch."""
        self._put("mutate", node.test, ast.UnaryOp(ast.Not(), node.test))
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Written out; other operators."""
        if isinstance(node.target, ast.Name):
            value = ast.BinOp(ast.Name(node.target.id), node.op, node.value)
            self._put("refactor", node, ast.Assign([node.target], value, lineno=1))
        for other in _OPERATORS.get(type(node.op), ()):
            self._put("mutate", node, ast.AugAssign(node.target, other(), node.value))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Left out; with a redundant copy."""
        self._put("mutate", node, ast.Pass())
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """Through a variable."""
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self._text("refactor", node, f"result = {ast.unparse(node.value)}; return result")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        """Continue in its place."""
        self._put("mutate", node, ast.Continue())

    def visit_Continue(self, node: ast.Continue) -> None:
        """Break in its place."""
        self._put("mutate", node, ast.Break())

    def _put(self, kind: Kind, node: ast.expr | ast.stmt, replacement: ast.AST) -> None:
        try:
            text = ast.unparse(ast.fix_missing_locations(replacement))
        except (ValueError, RecursionError):
            return
        if isinstance(node, ast.expr) and not isinstance(node, ast.Constant | ast.Name | ast.Call | ast.Attribute):
            text = f"({text})"
        self._text(kind, node, text)

    def _text(self, kind: Kind, node: ast.expr | ast.stmt, text: str) -> None:
        if node.end_lineno is None or node.end_col_offset is None:
            return
        start = self._offset(node.lineno, node.col_offset)
        end = self._offset(node.end_lineno, node.end_col_offset)
        self.edits.append((Edit(kind, start, end, self._in_style(start, end, text)), text))

    def _in_style(self, start: int, end: int, text: str) -> str:
        """The first of the shorter forms of a text that means the same in its place."""
        first, last = self.statement
        begin = self.begins[first]
        stop = self.begins[last] if last < len(self.begins) else len(self.program)
        head = _HEAD if self.program[begin] in " \t" else ""

        def meaning(form: str) -> str | None:
            try:
                tree = ast.parse(head + self.program[begin:start] + form + self.program[end:stop])
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return None
            return ast.dump(tree)

        forms = [text[1:-1], text] if text.startswith("(") else [text]
        if not self.spaced:
            forms = [*(_SPACES.sub(r"\1", form) for form in forms), *forms]
        wanted = meaning(text)
        return next((form for form in forms if wanted is not None and meaning(form) == wanted), text)

    def _offset(self, line: int, column: int) -> int:
        begin = self.begins[line - 1]
        text = self.program[begin : self.begins[line] if line < len(self.begins) else len(self.program)]
        return begin + len(text.encode()[:column].decode(errors="ignore"))


def edits_of_statement(edits: list[Edit], spans: list[tuple[int, int]]) -> Iterator[tuple[int, Edit]]:
    """(index of the step, edit) of every edit that lies within one step."""
    for edit in edits:
        for index, (start, end) in enumerate(spans):
            if start <= edit.start and edit.end <= end:
                yield index, edit
