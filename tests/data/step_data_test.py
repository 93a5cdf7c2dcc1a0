import json

import pytest

from prm_jax.data.step_data import StepRecord, read_step_data, with_first_error, write_step_data
from prm_jax.errors import UserError


def written(tmp_path, *objects, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in objects))
    return path


def test_own_format_round_trip(tmp_path):
    data = [
        StepRecord("1+2=", ("first", "second"), (1.0, 0.25), 0.0, "a", "x", {"model": "m", "samples": 8}),
        StepRecord(({"role": "user", "content": "hi"},), ("é\n", "two"), (None, 1.0), None, "b", "y"),
        StepRecord((5, 6), ("only",), None, 1.0, "a", "z"),
    ]
    write_step_data(tmp_path / "out.jsonl", data)
    assert read_step_data(tmp_path / "out.jsonl") == data


def test_defaults_of_the_own_format(tmp_path):
    (a, b) = read_step_data(written(tmp_path, {"prompt": "p", "steps": ["s"]}, {"prompt": "p", "steps": ["t"]}))
    assert a.group == b.group and a.id == "data.jsonl:1" and a.labels is None and a.outcome is None


def test_trl_stepwise_supervision(tmp_path):
    (found,) = read_step_data(
        written(tmp_path, {"prompt": "Blue?", "completions": ["The sky is blue.", "So 3."], "labels": [True, False]})
    )
    assert (found.prompt, found.steps, found.labels) == ("Blue?", ("The sky is blue.", "So 3."), (1.0, 0.0))
    assert found.first_error() == 1


@pytest.mark.parametrize("whole", [True, False])
def test_processbench_as_a_list_and_as_lines(tmp_path, whole):
    rows = [
        {"id": "g-1", "generator": "m", "problem": "P", "steps": ["a", "b", "c"], "final_answer_correct": False,
         "label": 1},
        {"id": "g-2", "problem": "Q", "steps": ["a"], "final_answer_correct": True, "label": -1},
    ]  # fmt: skip
    path = written(tmp_path, json.dumps(rows, indent=1)) if whole else written(tmp_path, *rows)
    first, second = read_step_data(path)
    assert first.labels == (1.0, 0.0, None) and first.outcome == 0.0 and first.first_error() == 1
    assert first.provenance == {"generator": "m"} and first.id == "g-1"
    assert second.labels == (1.0,) and second.outcome == 1.0 and second.first_error() == -1


def test_math_shepherd(tmp_path):
    text = "How many? Step 1: 1+1=2. ки\nStep 2: 2*3=7. The answer is: 7 ки"
    signs = "How many? Step 1: 1+1=2. +\nStep 2: 2*3=7. The answer is: 7 -"
    (found,) = read_step_data(written(tmp_path, {"input": text, "label": signs, "task": "GSM8K"}))
    assert found.prompt == "How many?"
    assert found.steps == ("Step 1: 1+1=2.", "Step 2: 2*3=7. The answer is: 7")
    assert found.labels == (1.0, 0.0) and found.provenance == {"task": "GSM8K"}


def _completion(text, rating):
    return {"text": text, "rating": rating, "flagged": False}


def test_prm800k_gives_the_chosen_path_and_each_alternative_once(tmp_path):
    steps = [
        {"completions": [_completion("a", 1)], "human_completion": None, "chosen_completion": 0},
        {"completions": [_completion("bad", -1), _completion("meh", 0)], "human_completion": {"text": "mine"},
         "chosen_completion": None},
        {"completions": [_completion("end", 0), _completion("other", 1)], "human_completion": None,
         "chosen_completion": 0},
    ]  # fmt: skip
    record = {"question": {"problem": "P"}, "label": {"steps": steps, "finish_reason": "solution"}}
    path = written(tmp_path, record)
    chosen, *others = read_step_data(path)
    assert chosen.steps == ("a", "mine", "end") and chosen.labels == (1.0, 1.0, 1.0)
    assert [(x.steps, x.labels) for x in others] == [
        (("a", "bad"), (None, 0.0)),
        (("a", "meh"), (None, 1.0)),
        (("a", "mine", "other"), (None, None, 1.0)),
    ]
    assert read_step_data(path, neutral=None)[0].labels == (1.0, 1.0, None)
    ended = [{"completions": [_completion("wrong", -1)], "human_completion": None, "chosen_completion": None}]
    (found,) = read_step_data(written(tmp_path, {"question": {"problem": "P"}, "label": {"steps": ended}}))
    assert found.steps == ("wrong",) and found.first_error() == 0


def test_first_errors_and_labels():
    assert with_first_error("abc", 1) == (1.0, 0.0, None) and with_first_error("ab", -1) == (1.0, 1.0)
    record = StepRecord("p", ("a", "b"), (None, 0.0), None, "g", "i")
    assert record.first_error() is None  # the unknown label may be wrong already


OWN = {"prompt": "p", "steps": ["a", "b"]}
FLAWED = {"modified_question": "q", "modified_process": ["1. a", "2. b"], "error_steps": [2]}
BENCH = {"problem": "p", "steps": ["a"], "label": 0}


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{**OWN, "labels": [1]}], r"data.jsonl:1:labels: 1 labels for 2 steps"),
        ([OWN, {**OWN, "labels": [1, 2]}], r"data.jsonl:2:labels\[1\]: expected a number in \[0, 1\].*\(2\)"),
        ([{**OWN, "labels": "right"}], "expected a list of labels, found text"),
        (['{"prompt": "p", "steps": ["a"], "outcome": NaN}'], "NaN is not a JSON value"),
        ([{**OWN, "steps": []}], "expected a list of steps, found a list"),
        ([{**OWN, "steps": ["a", " "]}], r"steps\[1\]: the text is empty"),
        ([{**OWN, "provenance": 3}], "provenance: expected an object, found a number"),
        ([{**BENCH, "label": 1}], "index of the first wrong step of 1, or -1, found a number"),
        ([{**BENCH, "label": True}], "found a truth value"),
        ([{"problem": "p", "steps": ["a"]}], "nearest is processbench, which lacks label"),
        ([{"problem": "p", "step": ["a"], "label": 0}], r"nearest is processbench, which lacks steps \(is it 'step'"),
        ([{"prompt": "p", "completions": ["a"]}], "nearest is trl, which lacks labels"),
        ([{"input": "p", "steps": ["a"]}], "nearest is bigbench_mistake, which lacks mistake_index"),
        ([{"modified_question": "p", "modified_process": ["a"]}], "nearest is prmbench, which lacks error_steps"),
        ([{**FLAWED, "error_steps": [0]}], "error_steps: expected numbers of wrong steps from 1 to 2, found a list"),
        ([{"input": "p", "steps": ["a"], "mistake_index": 1}], "first wrong step of 1, or null, found a number"),
        ([{"weather": 3}], "no known format of step data has the fields weather$"),
        ([{"input": "P Step 1: a ки", "label": "P Step 1: b +"}], "step 1 differs"),
        ([{"input": "P Step 1: a", "label": "P Step 1: a"}], "expected the tag"),
        ([{"input": "P a ки", "label": "P a +"}], "then 'Step 1:'"),
        ([{"question": 3, "label": {"steps": []}}], "question: expected an object"),
        ([{"question": {"problem": "p"}, "label": {"steps": 3}}], "label.steps: expected a list"),
        ([{"question": {"problem": "p"}, "label": {"steps": [{"completions": [_completion("a", 4)]}]}}],
         r"steps\[0\].rating: expected -1, 0, 1 or null"),
        ([], "has no records"),
        (["[1, 2]"], r"\[0\]: expected an object"),
        (["[{"], "not JSON that can be read"),
    ],
)  # fmt: skip
def test_bad_records_are_named(tmp_path, objects, message):
    with pytest.raises(UserError, match=message):
        read_step_data(written(tmp_path, *objects))


def test_unknown_formats_and_missing_files(tmp_path):
    path = written(tmp_path, OWN)
    with pytest.raises(UserError, match="did you mean 'processbench'"):
        read_step_data(path, format="process_bench")
    with pytest.raises(UserError, match="is missing"):
        read_step_data(path, format="trl")
    with pytest.raises(UserError, match="cannot read"):
        read_step_data(tmp_path / "none.jsonl")


def test_benchmarks_of_mistakes(tmp_path):
    record = {**FLAWED, "idx": "one", "classification": "circular", "question": "?", "original_process": ["1. x"]}
    (found,) = read_step_data(written(tmp_path, record))
    assert (found.prompt, found.steps, found.labels) == ("q", ("1. a", "2. b"), (1.0, 0.0))
    assert found.id == "one" and found.provenance == {"category": "circular"}
    sums = {"input": "1 + 1 =", "steps": ["a", "b"], "mistake_index": 0, "answer": "3", "target": "2"}
    right = {**sums, "mistake_index": None, "answer": " 2"}
    wrong, good = read_step_data(written(tmp_path, sums, right))
    assert (wrong.labels, wrong.outcome) == ((0.0, None), 0.0) and (good.labels, good.outcome) == ((1.0, 1.0), 1.0)


def test_published_files(data_dir):
    bench = read_step_data(data_dir / "processbench" / "gsm8k.json")
    assert len(bench) == 400 and sum(record.first_error() >= 0 for record in bench) == 207
    shepherd = read_step_data(data_dir / "formats" / "math_shepherd_samples.jsonl")
    assert len(shepherd) == 7 and all(len(r.steps) == len(r.labels) for r in shepherd)
    human = read_step_data(data_dir / "formats" / "prm800k_samples.jsonl")
    assert {r.group for r in human} and len({r.group for r in human}) == 6 and len(human) > 6
    flawed = read_step_data(data_dir / "formats" / "prmbench_samples.jsonl")
    assert len(flawed) == 3 and flawed[0].labels == (1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    mistakes = read_step_data(data_dir / "bigbench_mistake" / "multistep_arithmetic.jsonl")
    assert len(mistakes) == 300 and sum(record.first_error() >= 0 for record in mistakes) == 238
