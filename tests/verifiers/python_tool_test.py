"""The Python tool: which text is a program, what the model is told, failures."""

import pytest

from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer
from prm_jax.verifiers import Markers, PythonTool, make_tool
from prm_jax.verifiers.sandbox import LocalSandbox, Run, available_levels, levels
from prm_jax.verifiers.tools import check_tool


@pytest.fixture(scope="module")
def tool():
    if all(available_levels().values()):
        pytest.skip("no sandbox on this machine")
    with LocalSandbox(workers=1) as sandbox:
        yield PythonTool(sandbox, max_characters=40)


def test_programs():
    tool = PythonTool()
    assert tool.markers.call("so <python>\nprint(1)\n</python>") == "print(1)\n"
    assert tool.markers.call("<python>a</python> <output>1</output> <python>b</python>\n") == "b"
    for text in ("print(1)", "<python>print(1)", "<python>1</python> done", "</python>", ""):
        assert tool.markers.call(text) in (None, "") and not (text != "</python>" and tool.markers.call(text))


def test_answers(tool):
    assert tool.answer("print(3 ** 4)") == "<output>81</output>"
    assert tool.answer("x = 1") == "<output></output>"
    assert "ZeroDivisionError" in tool.answer("1 / 0")
    assert "no end after" in PythonTool(tool.sandbox, limits=_short()).answer("while True: pass")
    cut = tool.answer("print('a' * 100 + 'b' * 100)")
    assert cut == f"<output>{'a' * 20} ... {'b' * 20}</output>"
    assert tool.answer("print(x)") != "<output>1</output>"  # nothing is kept between calls


def _short():
    from prm_jax.verifiers.sandbox import Limits

    return Limits(cpu_seconds=1, wall_seconds=6)


class _Failing:
    def run(self, code, limits):
        return Run("infra_error", detail="no worker")


def test_a_failing_sandbox_is_an_error_and_not_an_answer():
    with pytest.raises(RuntimeError, match="no worker"):
        PythonTool(_Failing()).step("<python>1</python>")


def test_without_a_sandbox_it_is_refused_before_the_first_call(monkeypatch):
    monkeypatch.setattr(levels, "available_levels", lambda: {"bubblewrap": "not installed", "landlock": "old kernel"})
    tool, text = make_tool("python", ("[", "]")), CharTokenizer("[]")
    with pytest.raises(UserError, match="apt install bubblewrap"):
        check_tool(tool, text, option="--hint.markers")
    check_tool(make_tool("calculator", ("[", "]")), text, option="--hint.markers")
    check_tool(PythonTool(_Failing(), Markers("[", "]")), text, option="--hint.markers")


def test_bad_options():
    with pytest.raises(UserError, match="markers"):
        Markers("[", "")
    with pytest.raises(UserError, match="max_characters"):
        PythonTool(max_characters=0)
