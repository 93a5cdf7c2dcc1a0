"""Matrices in LaTeX."""

from collections.abc import Sequence

from prm_jax.verifiers.expressions import Expr, number, parse
from prm_jax.verifiers.forms import MAX_ITEMS, Matrix
from prm_jax.verifiers.latex import Token, Unreadable
from prm_jax.verifiers.token_lists import matching, split

_MATRICES = (
    "pmatrix",
    "bmatrix",
    "matrix",
    "Bmatrix",
    "vmatrix",
    "smallmatrix",
    "psmallmatrix",
    "bsmallmatrix",
    "array",
)


def matrix(found: list[Token], scale: Expr | None) -> Matrix:
    r"""``\begin{pmatrix} a & b \\ c & d \end{pmatrix}``, all entries multiplied by ``scale``."""
    end = next((index for index, token in enumerate(found) if token.text == "end"), -1)
    opening, start = _environment(found, 1)
    closing, stop = _environment(found, end + 1)
    if end < 0 or opening != closing or stop != len(found) or opening not in _MATRICES:
        raise Unreadable("an environment that is not a matrix")
    if opening == "array" and start < end and found[start].text == "{":
        start = matching(found, start) + 1
    rows, _ = split(found[start:end], ("newline",))
    if rows and not rows[-1]:
        rows.pop()
    trees = []
    for row in rows:
        entries = [parse(entry) for entry in split(row, ("&",))[0]]
        trees.append(tuple(Expr("mul", (scale, entry)) if scale else entry for entry in entries))
    if not trees or len({len(row) for row in trees}) > 1 or len(trees) * len(trees[0]) > MAX_ITEMS:
        raise Unreadable("a matrix with rows of different length")
    return Matrix(tuple(trees), "vmatrix" if opening == "vmatrix" else "matrix")


def scaled_matrix(found: list[Token]) -> Matrix:
    """A matrix with a factor before it."""
    start = next(index for index, token in enumerate(found) if token.text == "begin")
    before = found[:start]
    if before and before[-1].text in ("cdot", "times"):
        before = before[:-1]
    scale = number(-1) if [t.text for t in before] == ["-"] else parse(before)
    return matrix(found[start:], scale)


def _environment(found: Sequence[Token], start: int) -> tuple[str, int]:
    """The name in braces at ``start``, and where it ends."""
    name = []
    at = start
    if at < len(found) and found[at].text == "{":
        at += 1
        while at < len(found) and found[at].text != "}":
            name.append(found[at].text)
            at += 1
    return "".join(name), at + 1
