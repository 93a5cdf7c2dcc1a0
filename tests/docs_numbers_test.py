"""Numbers in tables have a source: results in JSON that hold them, or a file or command that the page names."""

import json
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = {
    "README.md": ["make run"],
    "docs/code.md": ["experiments/"],
    "docs/models.md": ["experiments/benchmarks/"],
    "docs/pods.md": ["experiments/benchmarks/pods.py", "pods.json"],
    "docs/quantization.md": ["experiments/quantization"],
    "docs/reliability.md": ["experiments/reliability"],
    "docs/rollouts.md": ["experiments/benchmarks/"],
    "docs/scale.md": ["preset_plans"],
    "docs/search.md": ["experiments/"],
    "docs/training.md": ["sharded_flops.json"],
}
"""Page -> what it must name: the files or commands from which the numbers of its tables come."""
BY_SEED = {"experiments/calculator/README.md"}
"""Pages with a table by seed whose results keep means only; rows that begin with a number are not compared."""
FEW = 5
"""Decimals in tables that a page may have without a source: constants of equations and defaults of options."""


def table_numbers(text: str) -> Iterator[str]:
    """Decimals in the rows of tables, without their names, code, links and arXiv ids."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in outside.splitlines():
        if line.startswith("|"):
            plain = re.sub(r"`[^`]*`|arXiv [\d., ]+|\]\([^)]*\)", "", line.partition("|")[2].partition("|")[2])
            plain = plain.replace(",", "")
            yield from re.findall(r"(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?(?![\w.])", plain)


def json_numbers(value: object) -> Iterator[float]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from json_numbers(item)


def without_source(text: str, known: list[float]) -> list[str]:
    """Decimals of tables that are not a rounding of a known number."""
    missing = []
    for shown in table_numbers(text):
        digits = len(shown.partition("e")[0].partition(".")[2])
        unit = 10.0 ** (-digits) * (10.0 ** int(shown.partition("e")[2]) if "e" in shown else 1.0)
        if not any(abs(float(shown) - x) <= 0.51 * unit for x in known):
            missing.append(shown)
    return missing


EXPERIMENTS = [page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "experiments").glob("*/README.md"))]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "benchmarks" not in name])
def test_tables_of_experiments_are_their_results(name):
    page = ROOT / name
    known = [x for path in page.parent.glob("**/*.json") for x in json_numbers(json.loads(path.read_text()))]
    text = re.sub(r"^\| \d+ \|.*$", "", page.read_text(), flags=re.MULTILINE) if name in BY_SEED else page.read_text()
    missing = without_source(text, known)
    assert missing == [], f"{name} shows numbers that are not in its results: run the experiment, or correct the page"


def test_pages_with_numbers_name_their_source():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if name == "docs/claims.md" or name.startswith("docs/api/"):  # generated
            continue
        if len(list(table_numbers(text))) > FEW:
            assert name in SOURCES, f"{name}: its tables have numbers; add the page and their source to SOURCES"
        for source in SOURCES.get(name, ()):
            assert source in text, f"{name} must say that its numbers come from {source}"


def test_a_wrong_number_is_found():
    page = "| a | 0.983 [0.97, 1.00] | 12.5 |\n```\n| 7.7 |\n```\ntext 3.3\n| 0.5 | `4.4` | 1.2e-05 |"
    assert list(table_numbers(page)) == ["0.983", "0.97", "1.00", "12.5", "1.2e-05"]
    assert without_source(page, [0.98312, 0.9701, 0.999, 12.45, 1.23e-5]) == []
    assert without_source(page, [0.9849, 0.9701, 0.999, 12.45, 1.23e-5]) == ["0.983"]
