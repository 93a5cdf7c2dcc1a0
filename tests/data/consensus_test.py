"""Which first wrong step labels name, what files of other labellers say, and what both agree on."""

import json

import pytest

from prm_jax.data.consensus import consensus, first_error, read_first_errors
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1.0, 1.0], -1),
        ([1.0, 0.0, 1.0], 1),
        ([0.0], 0),
        ([None, 1.0, 0.0, None], 2),  # probed from the middle: what comes before a right step is right
        ([None, 1.0, None, 0.0], None),  # one of the last two
        ([None, 0.0], None),
        ([1.0, None], None),
        ([None, 1.0], -1),
        ([None, None], None),
        ([0.5, 0.49], 1),
        (None, None),
    ],
)
def test_the_first_wrong_step(labels, expected):
    assert first_error(labels) == expected


def solution(name, labels):
    return StepRecord("1+1?", tuple("abcd"[: len(labels)]), tuple(labels), None, "g", name)


def test_the_threshold_is_of_the_labels_given():
    assert first_error([-0.1, -0.6], threshold=-0.5) == 1


def test_what_both_agree_on():
    solutions = [
        solution("same", [1.0, 0.0]),
        solution("right", [1.0, 1.0]),
        solution("other", [0.0, 0.0]),
        solution("cannot tell", [None, 0.0]),
        solution("new", [1.0, 0.0]),
    ]
    found = consensus(solutions, {"same": 1, "right": -1, "other": 1, "cannot tell": 1, "unheard": 0})
    assert found == (solutions[:2], 1, 1, 1)
    assert str(found) == (
        "2 of 5 solutions kept, 1 left out because the other labels name another first wrong step, "
        "1 left out because their labels do not determine the first wrong step, 1 left out because the other labels "
        "do not include them"
    )
    with pytest.raises(UserError, match="name none of the 5 solutions: these are called 'same' and so on, those 'x'"):
        consensus(solutions, {"x": 0})


def test_files_of_labellers(tmp_path):
    lines = [
        {"id": "a", "scores": [0.9, 0.2], "labels": [1, 1]},  # scores are what the second labeller says
        {"id": "b", "labels": [True, None, False]},
        {"id": "c", "first_error": -1},
        {"id": "d", "problem": "1+1?", "label": 2},
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_first_errors(path) == {"a": 1, "c": -1, "d": 2}
    assert read_first_errors(path, threshold=0.1)["a"] == -1
    path.write_text(json.dumps(lines))
    assert read_first_errors(path) == {"a": 1, "c": -1, "d": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"scores": [1]}, "id"),
        ({"id": "a"}, "expected one of the fields scores, labels, first_error, label, found id"),
        ({"id": "a", "label": True}, "label: expected the index of the first wrong step, or -1, found"),
        ({"id": "a", "first_error": -2}, "first_error: expected the index"),
        ({"id": "a", "scores": 1}, "scores: expected a list"),
        ({"id": "a", "scores": [0.1, None]}, r"scores\[1\]: expected a number, found null"),
        ({"id": "a", "scores": [float("nan")]}, "NaN is not a JSON value"),
        ({"id": "a", "scores": ["x"]}, r"scores\[0\]: expected a number"),
        ({"id": "a", "labels": ["1"]}, r"labels\[0\]: expected a number"),
    ],
)
def test_bad_files(line, message, tmp_path):
    path = tmp_path / "judged.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=message):
        read_first_errors(path)


def test_more_bad_files(tmp_path):
    path = tmp_path / "judged.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        read_first_errors(path)
    path.write_text("")
    with pytest.raises(UserError, match="no records in it"):
        read_first_errors(path)
    path.write_text('{"id": 1, "label": 0}\n{"id": 1, "label": 0}\n')
    with pytest.raises(UserError, match="'1' occurs twice"):
        read_first_errors(path)
