"""The pages under docs/rl name every public function, and only existing ones."""

import pathlib
import re

from prm_jax import rl

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted((DOCS / "rl").glob("*.md"))
CLASSES = {name for name in rl.__all__ if isinstance(getattr(rl, name), type)}


def named(path: pathlib.Path) -> set[str]:
    return set(re.findall(r"\brl\.([A-Za-z]\w*)", path.read_text()))


def test_every_public_function_is_on_a_page():
    listed = set().union(*(named(page) for page in PAGES))
    assert set(rl.__all__) - CLASSES <= listed


def test_the_overview_lists_every_public_name():
    assert set(rl.__all__) <= named(DOCS / "rl" / "README.md")


def test_pages_name_only_existing_functions():
    for page in [*PAGES, DOCS / "methods.md"]:
        assert named(page) <= set(rl.__all__), page.name


def test_the_table_of_works_is_complete():
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "methods.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 58))


def test_links_exist():
    for page in [*PAGES, DOCS / "methods.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / target).exists() or target.startswith("http"), f"{page.name}: {target}"
        for folder in re.findall(r"`experiments/(\w+)", page.read_text()):
            assert (DOCS.parent / "experiments" / folder).is_dir(), f"{page.name}: experiments/{folder}"
