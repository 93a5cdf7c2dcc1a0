"""The site: docstrings as Markdown, and, where Sphinx is installed, a build without warnings."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def api_pages():
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "api_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOC = """A reward.

r_t = a*b [B, T].

Args:
  logp: [B, T] float; `x_y`
    goes on.
  beta: scale, > 0.

Returns:
  [B] float32.

Source: arXiv 1."""


def test_docstrings_become_lists(api_pages):
    text = api_pages.markdown(DOC)
    assert "r\\_t = a\\*b \\[B, T\\]." in text
    assert "- **logp**: \\[B, T\\] float; `x_y`\n  goes on.\n- **beta**: scale, \\> 0." in text
    assert text.endswith("**Returns:**\n\n\\[B\\] float32.\n\n**Source:** arXiv 1.")


def test_signatures_are_those_of_the_source(api_pages):
    def function(x: "Array", *, eps: float = 1e-6) -> "Array":  # noqa: F821
        """One."""

    assert api_pages.signature(function) == "(x: 'Array', *, eps: float=1e-06) -> 'Array'"


@pytest.mark.optional
@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    home = (tmp_path / "docs" / "index.html").read_text()
    assert "quickstart.html" in home and (tmp_path / "docs" / "gallery" / "run.html").is_file()
    assert not [line for line in home.splitlines() if "<script" in line and "http" in line], "nothing from the network"
