"""Programs cut into statements."""

import pytest

from prm_jax.data import StepSplitter, make_splitter

PROGRAM = '''import math

@cached
def area(r):
    """Doc
    string."""
    # a comment
    if r < 0: raise ValueError("é"); x = 1
    return (
        math.pi
        * r
    )
'''


def pieces(text):
    return [text[a:b] for a, b in StepSplitter("statement")(text)]


def test_a_statement_is_a_step():
    assert pieces(PROGRAM) == [
        "import math\n\n",
        "@cached\ndef area(r):\n",
        '    """Doc\n    string."""\n    # a comment\n',
        "    if r < 0: ",
        'raise ValueError("é"); ',
        "x = 1\n",
        "    return (\n        math.pi\n        * r\n    )\n",
    ]


def test_text_around_a_block_is_cut_by_lines():
    text = "First.\nSecond.\n```python\nx = (1 +\n  2)\ny = 3\n```\nDone.\n"
    assert pieces(text) == ["First.\n", "Second.\n", "```python\n", "x = (1 +\n  2)\n", "y = 3\n", "```\n", "Done.\n"]


@pytest.mark.parametrize("text", ["x = (", "```python\nx = (\ny = 1\n```\n", "no code\nat all", "", "```python\nx = 1"])
def test_what_is_no_program_is_cut_by_lines(text):
    assert "".join(pieces(text)) == text
    assert pieces(text) == [piece for piece in text.splitlines(keepends=True)]


def test_by_name():
    assert make_splitter("statement").how == "statement"
