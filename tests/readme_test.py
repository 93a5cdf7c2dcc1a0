"""The README keeps its promises: its code runs, its links lead somewhere, its commands exist."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.heavy

REPO = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    REPO / "README.md",
    *sorted(
        path for path in (REPO / "docs").glob("**/*.md") if path.parent.name != "api"
    ),  # api is made by `make docs`
    *sorted((REPO / "experiments").glob("*/README.md")),
    REPO / "examples" / "README.md",
    REPO / "CONTRIBUTING.md",
]


# Fragments checked by the docs_test.py of tests/rl and tests/stats; search.md needs the models of its own test.
ELSEWHERE = {"rl", "stats", "search.md"}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if not {page.parent.name, page.name} & ELSEWHERE],
    ids=lambda page: str(page.relative_to(REPO)),
)
def test_python_blocks_run(page):
    names: dict[str, object] = {}  # later blocks of a page go on from earlier ones
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_commands_of_the_readme_exist():
    text, makefile = (REPO / "README.md").read_text(), (REPO / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", text)) & {"run", "test", "fast", "lint"}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
