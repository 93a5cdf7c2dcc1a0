"""The calculator, and tools by name with markers of one's own."""

import pytest

from prm_jax.errors import UserError
from prm_jax.verifiers import Calculator, Markers, PythonTool, make_tool


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("347*829", "287663"),
        ("(2+3)^4/5", "125"),
        ("1.5*4 - 10", "-4"),
        ("7/8", "0.875"),
        ("-1/20", "-0.05"),
        ("10/4-3", "-0.5"),
        ("1/3", "1/3"),
        ("1/2^70", "1/1180591620717411303424"),
        ("1/0", "?"),
        ("x+1", "?"),
        ("sqrt(2)", "?"),
        ("9^9999", "?"),
        ("2^99999999", "?"),
        ("__import__('os')", "?"),
        ("(" * 200 + "1" + ")" * 200, "?"),
        ("1+", "?"),
        ("", "?"),
    ],
)
def test_values(expression, value):
    assert Calculator().value(expression) == value


def test_a_turn_ends_with_a_call_or_ends_the_episode():
    tool = make_tool("calculator", ("[", "]", "{", "}"))
    assert tool.step("so [1+1] and [347*829]").text == "{287663}"
    assert tool.step("#287663").done and tool.step("[1+1] is 2").done
    assert make_tool("calculator", ("[", "]")).step("[2*3]").text == "6"
    assert Calculator().step("<calc>2^10</calc>").text == "<result>1024</result>"


def test_tools_by_name():
    assert make_tool("none") is None and isinstance(make_tool("python"), PythonTool)
    assert make_tool("python", ("<<", ">>")).markers == Markers("<<", ">>")
    with pytest.raises(UserError, match=r"--hint.markers takes two strings .*; found 3"):
        make_tool("calculator", ("[", "]", "{"), option="--hint.markers")
    with pytest.raises(UserError, match="must differ; both are '%'"):
        make_tool("calculator", ("%", "%"))
    with pytest.raises(UserError, match="unknown tool 'pyton'; did you mean 'python'"):
        make_tool("pyton")
    with pytest.raises(UserError, match="must not be empty"):
        make_tool("calculator", ("[", ""))
