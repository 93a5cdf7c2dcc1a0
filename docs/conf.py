"""The documentation site: `make docs` builds it with Sphinx, MyST and Furo into build/site.

The source directory is the repository, so that pages, experiments and examples link to each other by the paths that
they have in the repository. The API reference is made from the docstrings by `docs/api_pages.py`.
"""

import pathlib
import shutil
import sys

from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import api_pages  # noqa: E402

from prm_jax._version import __version__  # noqa: E402

api_pages.write(ROOT / "docs" / "api")

project, author, copyright = "prm_jax", "the prm_jax authors", "the prm_jax authors"
version = release = __version__
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "experiments/README.md",
    "experiments/*/*.md",
    "examples/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
highlight_language = "text"  # blocks without a language are commands and their output
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"prm_jax {release}"
html_extra_path = ["_extra"]  # index.html at the top, which leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]  # rooms have classes of equal names; signatures are written as in the source


SECTIONS = {"docs/rl/README": "*", "docs/stats/README": "*", "experiments/README": "*/*"}
"""Pages that list the pages of their folder in a table -> those pages."""


def setup(app: Sphinx) -> None:
    """Connects what Sphinx calls while it builds."""
    app.connect("source-read", add_toctree)
    app.connect("build-finished", copy_gallery)


def add_toctree(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the pages of a section into the navigation, without a directive that readers of the repository would see."""
    if docname in SECTIONS:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{SECTIONS[docname]}\n```\n"


def copy_gallery(app: Sphinx, error: Exception | None) -> None:
    """Copies the gallery's pages, which are complete documents, to where links expect them."""
    shutil.copytree(ROOT / "docs" / "gallery", pathlib.Path(app.outdir) / "docs" / "gallery", dirs_exist_ok=True)
