"""The page about verifiers: its code runs, it names every public name, and its tables are those of the results."""

import json
import pathlib
import re

import pytest

from prm_jax import verifiers
from prm_jax.verifiers.sandbox import available_levels

_REPO = pathlib.Path(__file__).resolve().parents[2]
PAGE = _REPO / "docs" / "verifiers.md"
CODE_PAGE = _REPO / "docs" / "code.md"
RESULTS = _REPO / "experiments" / "benchmarks"


def test_every_public_name_is_on_the_page():
    text = PAGE.read_text() + CODE_PAGE.read_text()
    assert set(verifiers.__all__) - {"NO_ANSWER"} <= set(re.findall(r"\b\w+\b", text))
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (PAGE.parent / link).exists(), link


def test_the_code_on_the_page_runs():
    pytest.importorskip("mpmath", reason="needs the extra 'math'")
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, {"__name__": "page"})


@pytest.mark.skipif(all(available_levels().values()), reason="no sandbox on this machine")
def test_the_code_on_the_page_about_programs_runs():
    text = CODE_PAGE.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (CODE_PAGE.parent / link).exists(), link
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(code, {"__name__": "page"})


def test_the_tables_are_those_of_the_results():
    results = json.loads((RESULTS / "verifiers.json").read_text())
    before = json.loads((RESULTS / "verifiers_before.json").read_text())
    for part in ("mathematics", "numbers"):
        totals = [
            [sum(row[k] for row in table.values()) for k in range(4)]
            for table in (before[part], results["lenient"][part], results["strict"][part])
        ]
        line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| **all {part}**"))
        cells = [int(cell) for cell in re.findall(r"(?<= )\d+(?= )", line)]
        right, wrong = cells[: len(cells) // 2], cells[len(cells) // 2 :]
        assert right[:4] == [totals[0][0], *(total[1] for total in totals)]
        assert wrong[:4] == [totals[0][2], *(total[3] for total in totals)]
        assert wrong[2:4] == [0, 0] and right[2] >= 0.97 * right[0]
