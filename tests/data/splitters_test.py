"""Splitters by name: built in, from a module or file, with their own options."""

import textwrap

import pytest

from prm_jax.data.splitters import SPLITTERS, make_splitter
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError

_MODULE = """
    import re

    def clauses(text, mark: str = ","):
        return re.split(f"(?<={mark})", text)

    def offsets(text):
        return range(0, len(text), 2)

    class Every:
        def __init__(self, size: int = 3):
            self.size = size

        def __call__(self, text):
            return range(0, len(text), self.size)

    def two(text, other):
        return []

    def fails(text):
        return text.no_such_method()

    def drops(text):
        return text.split()
"""


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "cuts.py"
    path.write_text(textwrap.dedent(_MODULE))
    return str(path)


def _cut(splitter, text):
    return [text[start:end] for start, end in splitter(text)]


def test_built_in_names():
    assert set(SPLITTERS) == {"newline", "blank", "step_marker", "sentence", "statement", "tag", "regex", "whole"}
    assert make_splitter("newline") == StepSplitter("newline")
    assert make_splitter("regex", {"pattern": "; *"})("a; b") == [(0, 3), (3, 4)]
    assert make_splitter("tag", {"tags": "</s>,;"}).tags == ("</s>", ";")
    assert make_splitter("blank", answer_markers=("####",)).answer_markers == ("####",)
    assert make_splitter("blank", {"answer_markers": "#"}, answer_markers=("####",)).answer_markers == ("#",)


def test_functions_and_classes_from_a_file(module):
    assert _cut(make_splitter(f"{module}:clauses"), "a,b,c") == ["a,", "b,", "c"]
    assert _cut(make_splitter(f"{module}:clauses", {"mark": ";"}), "a,b;c") == ["a,b;", "c"]
    assert _cut(make_splitter(f"{module}:offsets"), "abcde") == ["ab", "cd", "e"]
    assert _cut(make_splitter(f"{module}:Every", {"size": "4"}), "abcdef") == ["abcd", "ef"]
    marked = make_splitter(f"{module}:Every", {"size": "9", "answer_markers": "#"})
    assert _cut(marked, "ab#c") == ["ab", "#c"]


def test_functions_and_splitters_as_they_are():
    assert _cut(make_splitter(lambda text: text.splitlines(keepends=True)), "a\nb") == ["a\n", "b"]
    splitter = StepSplitter("sentence")
    assert make_splitter(splitter) is splitter


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("newlin", {}, r"unknown splitter 'newlin' \(--split\): did you mean 'newline'"),
        ("function", {}, "unknown splitter"),
        ("regex", {}, "needs the option 'pattern'"),
        ("regex", {"pattern": "("}, "not a regular expression"),
        ("regex", {"patern": "x"}, "no option 'patern'; did you mean 'pattern'"),
        ("newline", {"tags": ";"}, "the splitter 'newline' has no option 'tags'"),
        ("MODULE:two", {}, r"called as two\(text\), but is defined as two\(text, other\)"),
        ("MODULE:fails", {}, "failed on the text .*AttributeError.*no_such_method"),
        ("MODULE:drops", {}, "joined give"),
        ("MODULE:absent", {}, "has no 'absent'"),
        ("MODULE:clauses", {"marks": ";"}, "has no option 'marks'; did you mean 'mark'"),
        ("MODULE:Every", {"size": "many"}, "expected a whole number, found 'many'"),
    ],
)
def test_what_cannot_split_is_refused(module, name, options, message):
    with pytest.raises(UserError, match=message):
        make_splitter(name.replace("MODULE", module), options, option="split")
