"""Where answers stand; any text gives an answer or None, and none takes long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_jax.errors import UserError
from prm_jax.verifiers import after_marker, find_answer, last_boxed, last_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{3}, no, \boxed{5}", "5"),  # the last box counts: it is the model's last word
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox {7}", "7"),
        (r"\boxed{\boxed{1}, \boxed{2}}", r"\boxed{1}, \boxed{2}"),
        (r"\boxed{\{\boxed{1}\}}", r"\{\boxed{1}\}"),
        (r"\boxed{5", None),
        (r"\boxed{3} and \boxed{", "3"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"}\boxed{}", ""),
        (r"\boxed 5", None),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2+3=5\n#### 5", "5"),
        ("The answer is: **18**.", "18"),
        ("the ANSWER IS $5.50.\nBye", "$5.50"),
        ("#### 3\n#### 4", "4"),
        ("\u0130 answer is 5", "5"),  # a letter whose lower case is longer
        ("5", None),
        ("answer:", ""),
    ],
)
def test_after_marker(text, answer):
    assert after_marker(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("24 in May, 72 in all.", "72"),
        ("1,234 apples", "1,234"),
        ("x = -5", "-5"),
        ("5-3", "3"),
        ("pi is 3.14.", "3.14"),
        ("x2 has none", None),
    ],
)
def test_last_number(text, answer):
    assert last_number(text) == answer


def test_find_answer():
    assert find_answer(" 5 ", "whole") == "5"
    assert find_answer("a=7", lambda text: text[2:]) == "7"
    assert find_answer(r"\boxed{ }", "boxed") is None
    assert find_answer("=> 4", "marker", markers=("=>",)) == "4"
    with pytest.raises(UserError, match="unknown place"):
        find_answer("5", "nowhere")


@given(st.text(alphabet="\\boxed{}fr1,.#\n an", max_size=60) | st.text())
def test_any_text_is_taken(text):
    for where in ("whole", "marker", "boxed", "last_number"):
        answer = find_answer(text, where)
        assert answer is None or answer == answer.strip() != ""


@pytest.mark.timeout(20)
def test_long_texts_take_linear_time():
    for piece in ("\\boxed{", "{", "}", "answer is", "1,", ",111", "1", "\\"):
        text = piece * 100_000
        for where in ("marker", "boxed", "last_number"):
            find_answer(text, where)
