"""The pages under docs/stats name every public function, and only existing ones."""

import pathlib
import re

from prm_jax import stats

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted((DOCS / "stats").glob("*.md"))
CLASSES = {name for name in stats.__all__ if isinstance(getattr(stats, name), type)}


def named(path: pathlib.Path) -> set[str]:
    return set(re.findall(r"\bstats\.([A-Za-z]\w*)", path.read_text()))


def test_every_public_function_is_on_a_page():
    listed = set().union(*(named(page) for page in PAGES))
    assert set(stats.__all__) - CLASSES <= listed


def test_the_overview_lists_every_public_name():
    assert set(stats.__all__) <= named(DOCS / "stats" / "README.md")


def test_pages_name_only_existing_functions():
    for page in [*PAGES, DOCS / "methods.md"]:
        assert named(page) <= set(stats.__all__), page.name
