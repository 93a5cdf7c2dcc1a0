"""What is released: the wheel and the sdist hold every file of the package, and work from another directory."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys
import zipfile

import pytest
import yaml

from prm_jax import __version__
from tools import release_check

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77, of the extra dev")
    return release_check.build(tmp_path_factory.mktemp("dist"))


def test_both_hold_the_whole_package(built):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "prm_jax").rglob("*.py")} | {"prm_jax/py.typed"}
    in_wheel, in_sdist = release_check.contents(*built)
    assert files <= in_wheel and files <= in_sdist
    assert {name.partition("/")[0] for name in in_wheel} == {"prm_jax", f"prm_jax-{__version__}.dist-info"}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= in_sdist


def test_the_wheel_works_from_another_directory(built, tmp_path):
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path / "site")
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from prm_jax import cli; import prm_jax\n"
    script += "print(prm_jax.__file__); sys.exit(cli.main(sys.argv[1:]))"
    for words in (["--version"], ["train", "--help"]):
        command = [sys.executable, "-P", "-c", script, str(tmp_path / "site"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(tmp_path / "site" / "prm_jax"))


def test_the_oldest_versions_are_those_of_pyproject():
    pins = dict(pin.split("==") for pin in release_check.oldest())
    assert pins["optax"] == "0.2.8" and pins["orbax-checkpoint"] == "0.11.30" and len(pins) >= 10


def test_type_checkers_see_every_name_that_is_imported_on_first_use():
    for path in (ROOT / "prm_jax").glob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        blocks = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        seen = {a.asname or a.name for node in body + sum([block.body for block in blocks], [])
                if isinstance(node, ast.ImportFrom) for a in node.names}  # fmt: skip
        module = importlib.import_module(f"prm_jax.{path.parent.name}")
        modules = {name for name in getattr(module, "__all__", ()) if inspect.ismodule(getattr(module, name))}
        defined = {name for name in vars(module) if hasattr(vars(module)[name], "__module__")
                   and vars(module)[name].__module__ == module.__name__}  # fmt: skip
        assert set(getattr(module, "__all__", ())) - modules <= seen | defined, path


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
