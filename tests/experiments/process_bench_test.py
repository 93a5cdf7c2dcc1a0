"""The solutions that the experiment on ProcessBench makes: labels are exact up to the first error; judging works."""

import json
from fractions import Fraction

import numpy as np
import pytest

from experiments.process_bench import main as experiment
from experiments.process_bench import solutions

QUESTION = "A pen costs $3 and a book $12. What do 6 pens and 2 books cost?"
ANSWER = "Pens cost 6*3 = $<<6*3=18>>18.\nBooks cost 2*12 = $<<2*12=24>>24.\nAll cost 18+24 = $<<18+24=42>>42.\n#### 42"


def test_a_solution_is_read_into_calculations():
    worked = solutions.read(QUESTION, ANSWER)
    assert worked is not None and worked.answer == 42 and len(worked.lines) == 3
    text, calculation, end = worked.lines[1]
    assert (text, end) == ("Books cost ", ".") and calculation == solutions.Calculation(
        ("2", "*", "12"), Fraction(24), True
    )


@pytest.mark.parametrize(
    "answer",
    [
        "It costs 36.\n#### 36",  # no calculation
        "Pens cost 4*3 = <<4*3=13>>13.\n#### 13",  # a wrong one
        "Pens cost 4*3 = <<4*3=12>>12.\n#### 36",  # another answer
        "4 pens at 3 each = <<4*3=12>>12.\n#### 12",  # words inside
        "Pens cost 4*3 = <<4*3=12>>12.\n#### twelve",
    ],
)
def test_what_is_not_clear_is_left_out(answer):
    assert solutions.read(QUESTION, answer) is None


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        ("2 * ( 3 + 4 ) / 7", 2),
        ("1 - 2 - 3", -4),
        ("8 / 2 / 2", 2),
        ("0.5 * 3", Fraction(3, 2)),
        ("1 / 0", None),
        ("( 1", None),
    ],
)
def test_expressions(tokens, value):
    assert solutions.evaluate(tokens.split()) == value


def test_a_mistake_is_in_one_calculation_and_is_carried_on():
    worked = solutions.read(QUESTION, ANSWER)
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        lines, wrong, kind = solutions.spoil(worked, rng)
        kinds.add(kind)
        assert lines[:wrong] == worked.lines[:wrong]
        was, now = (next(p for p in side[wrong] if not isinstance(p, str)) for side in (worked.lines, lines))
        assert now.value != was.value and (kind != "slip") == (solutions.evaluate(now.tokens) == now.value)
        for line in lines[wrong + 1 :]:  # what follows is right but for the number that it starts from
            found = next(p for p in line if not isinstance(p, str))
            assert solutions.evaluate(found.tokens) == found.value
        record = solutions.write(worked, lines, wrong, rng, name="n", group="g")
        known = [label for label in record.labels if label is not None]
        assert known == [1.0] * (len(known) - 1) + [0.0] and record.labels[len(known) :] == (None,) * (
            len(record.labels) - len(known)
        )
        assert solutions.show(now.value) in record.steps[len(known) - 1] and record.outcome == 0.0
    assert kinds == set(solutions.MISTAKES)
    right = solutions.write(worked, worked.lines, None, rng, name="n", group="g")
    assert set(right.labels) == {1.0} and right.outcome == 1.0


def test_data_keeps_problems_apart(tmp_path):
    file = tmp_path / "train.jsonl"
    lines = [{"question": f"{QUESTION} ({i})", "answer": ANSWER} for i in range(9)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = experiment.make_data(experiment.Data(file, problems=5, held_out=3))
    assert [len(found[name]) for name in ("train", "held_out")] == [10, 6]
    sides = [{record.group for record in records} for records in found.values()]
    assert not sides[0] & sides[1] and len(sides[0]) == 5
    assert experiment.make_data(experiment.Data(file, problems=5, held_out=3)) == found


def scored(path, *, sharp: float):
    """Solutions of three steps, half of them wrong at a random one; scores lean to the truth by `sharp`."""
    rng = np.random.default_rng(1)
    with open(path, "w") as file:
        for index in range(80):
            wrong = int(rng.integers(3)) if index % 2 else 3
            scores = [float(np.clip(rng.random() - sharp * (i == wrong), 0.0, 1.0)) for i in range(3)]
            labels = [1.0] * wrong + [0.0] * (wrong < 3) + [None] * (2 - wrong)
            line = {"id": str(index), "group": str(index), "scores": scores, "score": min(scores), "labels": labels[:3]}
            file.write(json.dumps(line) + "\n")
    return path


def test_the_report_stands_beside_what_luck_gives(tmp_path):
    paths = [scored(tmp_path / name, sharp=0.8) for name in ("bench.jsonl", "made.jsonl")]
    tables = experiment.judge(experiment.Report(*paths, out=tmp_path, shuffles=30, resamples=100))
    rows = tables["first wrong step"]
    best, luck = rows["threshold from the subset itself"]["F1"], rows["scores shuffled over steps"]["F1"]
    assert luck.high < rows["threshold from the other half"]["F1"] <= best
    assert rows["threshold from the other half"]["F1"].low < rows["threshold from the other half"]["F1"]
    assert rows["random"]["F1"] == pytest.approx(2 * 0.5 * (0.5 / 3) / (0.5 + 0.5 / 3))
    assert tables["steps up to the first wrong one"]["ProcessBench, gsm8k"]["AUC"] > 0.8
