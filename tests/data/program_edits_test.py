"""Edits of programs: what is found, where, and that each keeps a program a program."""

import ast

import pytest

from prm_jax.data import StepSplitter
from prm_jax.data.program_edits import edits_of_statement, find_edits

PROGRAM = '''def f(items, limit):
    """Unchanged: 1 < 2."""
    total = 0
    for i in range(len(items)):
        if items[i] < limit and not items[i] == 7:
            total += items[i] * 2
        elif "é" in "éa":
            break
    return total - min(items[1:3])
'''


def applied(kind):
    return [edit.apply(PROGRAM) for edit in find_edits(PROGRAM) if edit.kind == kind]


def test_every_edit_gives_another_program():
    mutated, refactored = applied("mutate"), applied("refactor")
    assert len(mutated) > 20 and len(refactored) >= 6
    for program in mutated + refactored:
        ast.parse(program)
        assert program != PROGRAM
        assert '"""Unchanged: 1 < 2."""' in program
    assert len(set(mutated)) == len(mutated)


@pytest.mark.parametrize(
    "line",
    [
        "        if items[i] <= limit and not items[i] == 7:",
        "        if not (items[i] < limit and (not items[i] == 7)):",
        "            total -= items[i] * 2",
        "    for i in range(1, len(items)):",
        "            continue",
        "    return total - max(items[1:3])",
        "    total = 1",
        "    pass",
    ],
)
def test_mutations_that_must_be_there(line):
    assert any(line in program.splitlines() for program in applied("mutate")), line


def test_refactored_programs_compute_the_same():
    def run(program):
        names = {}
        exec(program, names)
        return [names["f"](items, limit) for items in ([3, 1, 2], [7, 7, 1, 0]) for limit in (2, 9)]

    expected = run(PROGRAM)
    for program in applied("refactor"):
        assert run(program) == expected, program


def test_an_edit_belongs_to_the_step_that_contains_it():
    spans = StepSplitter("statement")(PROGRAM)
    for step, edit in edits_of_statement(find_edits(PROGRAM), spans):
        start, end = spans[step]
        assert edit.apply(PROGRAM)[:start] == PROGRAM[:start]
        assert edit.apply(PROGRAM)[len(edit.apply(PROGRAM)) - (len(PROGRAM) - end) :] == PROGRAM[end:]


def test_edits_have_the_style_of_the_program():
    body = " x=a-b\n return (x+a)*b"
    found = {edit.apply(body) for edit in find_edits(body)}
    assert {" x=b-a\n return (x+a)*b", " x=a-b\n return b*(x+a)", " x=a-b\n return (x-a)*b"} <= found
    assert " x=a-b\n return x+a+b" in found and not any("((" in program for program in found)
    spaced = {edit.apply("y = f(a - b, 'c - d')") for edit in find_edits("y = f(a - b, 'c - d')")}
    assert spaced == {"pass", "y = f(a + b, 'c - d')", "y = f(b - a, 'c - d')"}


def test_what_is_no_program_has_no_edits():
    assert find_edits("x = (") == [] and find_edits("") == []
