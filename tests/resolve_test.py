"""Names of options: built-in, from a module, or from a file; every failure says what was found and expected."""

import json
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from prm_jax.errors import UserError
from prm_jax.resolve import check_signature, resolve

_BUILTINS: dict[str, Callable[..., Any]] = {"clip": min, "delta": max}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


def test_built_ins_and_installed_modules():
    assert resolve("clip", _BUILTINS, "shaping") is min
    assert resolve("json:dumps", _BUILTINS, "shaping") is json.dumps
    assert resolve("json:JSONDecoder.decode", {}, "shaping") is json.JSONDecoder.decode


def test_a_package_in_the_working_directory(here):
    _write(here / "my_pkg" / "__init__.py", "")
    _write(here / "my_pkg" / "rewards.py", "def reward(x):\n    return x + 1\n")
    assert resolve("my_pkg.rewards:reward", _BUILTINS, "reward")(1) == 2


def test_a_file_by_its_path(here):
    _write(here / "helper_of_mine.py", "VALUE = 7")
    _write(here / "sub dir" / "neighbour_of_mine.py", "VALUE = 5")
    _write(
        here / "sub dir" / "my-task.py",
        """
        import dataclasses
        import helper_of_mine

        @dataclasses.dataclass
        class Maker:
            value: int = helper_of_mine.VALUE

        def make():
            from neighbour_of_mine import VALUE  # found although it is imported late
            return VALUE
        """,
    )
    maker = resolve("sub dir/my-task.py:Maker", {}, "task")
    assert maker().value == 7
    assert resolve(str(here / "sub dir" / "my-task.py") + ":Maker", {}, "task") is maker
    assert resolve("./sub dir/my-task.py:make", {}, "task")() == 5


def test_a_changed_file_is_read_again(here):
    _write(here / "edited.py", "def f(): return 1")
    assert resolve("edited.py:f", {}, "task")() == 1
    _write(here / "edited.py", "def f(): return 2")
    assert resolve("edited.py:f", {}, "task")() == 2


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("clp", ["unknown shaping 'clp' (--reward.shaping): did you mean 'clip'?", "clip, delta"]),
        ("my_pkg.rewards.reward", ["write my_pkg.rewards:reward, with a colon"]),
        ("my_task.py", ["write my_task.py:function"]),
        (":f", ["expected package.module:attribute"]),
        ("json:", ["expected package.module:attribute"]),
        ("no_such_module_here:f", ["no module 'no_such_module_here'", "working directory"]),
        ("json.nothing:f", ["no module 'json.nothing'"]),
        ("json:dump5", ["has no 'dump5'; did you mean 'dump'?"]),
        ("json:decoder.NaN", ["is not callable: found nan of type float"]),
        ("absent.py:f", ["the file does not exist", "absent.py"]),
        (".:f", ["cannot import the shaping", "'.' is not the name of a module"]),
        ("..x:f", ["'..x' is not the name of a module"]),
        ("a b:f", ["'a b' is not the name of a module"]),
        ("broken.py:f", ["ZeroDivisionError", "broken.py:2", "division by zero"]),
        ("syntax.py:f", ["SyntaxError", "syntax.py:1"]),
        ("quits.py:f", ["SystemExit", "3"]),
        ("needs.py:f", ["ModuleNotFoundError", "needs.py:1", "not_installed_anywhere"]),
    ],
)
def test_failures_name_what_was_found(here, name, parts):
    _write(here / "broken.py", "x = 1\ny = x / 0\n")
    _write(here / "syntax.py", "def f(:\n")
    _write(here / "quits.py", "import sys\nsys.exit(3)\n")
    _write(here / "needs.py", "import not_installed_anywhere\n")
    with pytest.raises(UserError) as caught:
        resolve(name, _BUILTINS, "shaping", option="reward.shaping")
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "--reward.shaping" in message


def test_a_directory_and_a_fifo_are_not_files(here):
    import os

    (here / "folder.py").mkdir()
    os.mkfifo(here / "pipe.py")
    for name in ("folder.py:f", "pipe.py:f"):
        with pytest.raises(UserError, match="not a regular file"):
            resolve(name, {}, "task")


def test_signatures():
    check_signature(lambda rewards, inputs, scale=1.0: 0, ("rewards", "inputs"), "advantage 'a'")
    check_signature(lambda *arguments: 0, ("rewards", "inputs"), "advantage 'a'")
    check_signature(dict, ("x",), "advantage 'a'")

    def one(rewards):
        return rewards

    with pytest.raises(UserError) as caught:
        check_signature(one, ("rewards", "inputs"), "advantage 'my:one'")
    assert "one(rewards, inputs)" in str(caught.value) and "one(rewards)" in str(caught.value)
    with pytest.raises(UserError, match="missing a required"):
        check_signature(lambda a, b, c: 0, ("a", "b"), "x")
    with pytest.raises(UserError, match="missing a required"):
        check_signature(lambda a, *, key: 0, ("a",), "x")
    with pytest.raises(UserError, match="not callable"):
        check_signature(3, ("a",), "x")  # type: ignore[arg-type]
