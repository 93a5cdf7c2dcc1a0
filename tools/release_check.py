"""Builds wheel and sdist and tests them as a user gets them: `make release-check`.

Each is installed into an environment of its own, once with the newest and once with the oldest supported packages, and
used from an empty directory: version, commands, every public name, and a client program under the type checker.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
_NAMES = """
import importlib
for room in ("rl", "stats", "search", "pallas", "models", "rollouts", "verifiers", "data", "runs", "prm", "prime"):
    module = importlib.import_module(f"prm_jax.{room}")
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing, missing
import pathlib, sys, prm_jax
folder = pathlib.Path(prm_jax.__file__).parent
assert (folder / "py.typed").is_file() and folder.is_relative_to(sys.prefix), folder
print(prm_jax.__version__, prm_jax.__file__)
"""


def build(out: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """(wheel, sdist), built from a copy of the package by the build backend that pyproject.toml names, as pip would."""
    source = out / "source"
    shutil.copytree(ROOT / "prm_jax", source / "prm_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for hook in ("build_wheel", "build_sdist"):
        script = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
        subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, check=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def contents(wheel: pathlib.Path, sdist: pathlib.Path) -> tuple[set[str], set[str]]:
    """Names of the files in both, the sdist's without its folder."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    return in_wheel, in_sdist


def oldest() -> list[str]:
    """Constraints that pin every dependency to the lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.match(r"([\w-]+)>=([\d.]+)", need) for need in project["dependencies"]]
    return [f"{match[1]}=={match[2]}" for match in found if match]


def check(package: pathlib.Path, where: pathlib.Path, constraints: Sequence[str]) -> None:
    """Installs a package into a fresh environment under `where` and uses it from an empty directory."""
    python = where / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
    pins = where / "constraints.txt"
    pins.write_text("\n".join(constraints) + "\n")
    empty = where / "empty"
    empty.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}

    def run(*words: str) -> None:
        subprocess.run(words, cwd=empty, env=clean, check=True)

    run(str(python), "-m", "pip", "install", "-q", "-c", str(pins), str(package), "mypy", "types-PyYAML")
    run(str(python), "-c", _NAMES)
    run(str(where / "bin" / "prm-jax"), "--version")
    run(str(where / "bin" / "prm-jax"), "doctor")
    client = empty / "client.py"
    client.write_text((ROOT / "tests" / "typed_client.py").read_text(encoding="utf-8"))
    run(str(python), "-m", "mypy", "--ignore-missing-imports", "--disallow-any-unimported", "client.py")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("newest", "oldest"), help="only with these versions of the dependencies")
    chosen = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        wheel, sdist = build(out)
        lanes: dict[str, tuple[pathlib.Path, list[str]]] = {"newest": (wheel, []), "oldest": (sdist, oldest())}
        for lane, (package, constraints) in lanes.items():
            if chosen in (None, lane):
                print(f"{package.name} with the {lane} packages", flush=True)
                check(package, out / lane, constraints)
    print("wheel and sdist work")


if __name__ == "__main__":
    main()
