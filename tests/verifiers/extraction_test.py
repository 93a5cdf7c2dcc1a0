"""Finding answers: any text gives an answer or None, quickly."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_jax.errors import UserError
from prm_jax.verifiers import after_marker, find_answer, find_candidates, last_boxed, last_number


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


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        (r"\boxed{1} <answer>2</answer> #### 3, the answer is 4", ("1",)),
        ("<answer>2</answer> #### 3, the answer is 4", ("2",)),
        ("The answer is 4.\n#### 3", ("3",)),
        ("The answer is 4.", ("4",)),
        ("It is 4.", ()),
        (r"\boxed{1}\boxed{ 1 }\boxed{2}", ("1", "2")),
        ("#### 7 #### 8", ("7", "8")),
        ("the answer is\n\n7", ("7",)),
        ("The answer is 18. Let me check: fine.", ("18",)),
        ("The answer is 18. Wait, it is 19.", ("18. Wait, it is 19",)),
        ("<think>#### 1</think>\n#### 2", ("2",)),
        ("#### 2</s>", ("2",)),
        ("#### 2<|im_end|>\n", ("2",)),
        ("<answer>1<answer>2</answer>", ("2",)),
        ("<Answer>2</ANSWER>", ("2",)),
        ("</answer>2<answer>", ()),
        ("".join(rf"\boxed{{{k}}}" for k in range(20)), ()),  # that many are none
    ],
)
def test_ladder(text, candidates):
    assert find_candidates(text, "ladder") == candidates


def test_the_last_of_several_candidates():
    assert find_candidates("#### 7 #### 8", "ladder", several="last") == ("8",)
    assert find_answer("#### 7 #### 8", "ladder") is None
    assert find_answer("#### 7 #### 7", "ladder") == "7"


def test_the_last_number_is_the_last_rung():
    assert find_candidates("4 and 5", "anywhere") == ("5",)
    assert find_candidates("#### 4\nor 5", "anywhere") == ("4",)


def test_find_answer():
    assert find_answer(" 5 ", "whole") == "5"
    assert find_answer("a=7", lambda text: text[2:]) == "7"
    assert find_answer(r"\boxed{ }", "boxed") is None
    assert find_answer("=> 4", "marker", markers=("=>",)) == "4"
    with pytest.raises(UserError, match="unknown place"):
        find_answer("5", "nowhere")


@given(st.text(alphabet="\\boxed{}fr1,.#\n an", max_size=60) | st.text())
def test_any_text_is_taken(text):
    for where in ("whole", "marker", "boxed", "tags", "ladder", "anywhere", "last_number"):
        answer = find_answer(text, where)
        assert answer is None or answer == answer.strip() != ""


@pytest.mark.timeout(20)
def test_long_texts_take_linear_time():
    pieces = (
        "\\boxed{",
        "{",
        "}",
        "answer is",
        "1,",
        ",111",
        "1",
        "\\",
        "<answer>",
        "</answer>",
        "####",
        "*",
        "<|",
        "\n",
    )
    texts = [piece * 100_000 for piece in pieces] + ["\\boxed{" * 100_000 + "5" + "}" * 100_000]
    start = time.process_time()
    for text in texts:
        for where in ("marker", "boxed", "tags", "anywhere", "last_number"):
            find_answer(text, where)
    assert time.process_time() - start < 10.0
