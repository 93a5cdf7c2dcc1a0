"""JSONL files: what is read, and one clear message for everything that is wrong with one."""

import json

import numpy as np
import pytest

from prm_jax.data import load_task, problem_hash
from prm_jax.errors import UserError


def jsonl_task(train, eval="", **options):
    return load_task("jsonl", train=train, eval=eval, **options)


def gsm8k_task(train, eval="", **options):
    return load_task("gsm8k", train=train, eval=eval, **options)


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="data.jsonl"):
        path = tmp_path / name
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw))
        return str(path)

    return write


def row(k, answer=None):
    return {"prompt": f"question {k}", "answer": str(k) if answer is None else answer}


def test_prompts_as_text_messages_and_token_ids(write):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = write(row(1), {"prompt": messages, "answer": 2, "id": "two"}, {"prompt": [5, 6], "answer": 2.5})
    task = jsonl_task(path, eval_fraction=0.0)
    assert [p.prompt for p in task.train] == ["question 1", tuple(messages), (5, 6)]
    assert [p.answer for p in task.train] == ["1", "2", "2.5"]
    assert [p.id for p in task.train] == ["data.jsonl:1", "two", "data.jsonl:3"]
    assert task.notes == ["there are no evaluation problems"]


def test_byte_order_mark_crlf_blank_lines_and_no_newline_at_the_end(write):
    path = write(b"\xef\xbb\xbf" + json.dumps(row(1)).encode() + b"\r", b"\r", b"  ", json.dumps(row(2)).encode())
    assert [p.answer for p in jsonl_task(path, eval_fraction=0.0).train] == ["1", "2"]


BAD_LINES = [
    (b'{"prompt": "a", "answer": ', r"data.jsonl:2: not JSON: .* at column 26"),
    (b"not json", r"data.jsonl:2: not JSON"),
    (b'{"prompt": "a", "answer": NaN}', r"data.jsonl:2: not JSON that can be read: NaN"),
    (b"[" * 100_000, r"data.jsonl:2: not JSON"),
    (b'{"prompt": "a", "answer": ' + b"1" * 5000 + b"}", r"data.jsonl:2: not JSON that can be read"),
    (b'"text"', r"data.jsonl:2: expected an object with fields, found text"),
    (b"[1]", r"data.jsonl:2: expected an object with fields, found a list"),
    (b'{"prompt": "caf\xe9", "answer": "1"}', r"data.jsonl:2: byte 0xe9 at position 15 is not UTF-8"),
    (b'{"prompt": "a\0b", "answer": "1"}', r"data.jsonl:2: not JSON: Invalid control character"),
    (b'{"prompt": "a\\u0000b", "answer": "1"}', r"data.jsonl:2:prompt: the text has a NUL character at position 1"),
    (b'{"prompt": "a\\ud800b", "answer": "1"}', r"data.jsonl:2:prompt: .* half of a surrogate pair"),
    (b'{"promt": "a", "answer": "1"}', r"data.jsonl:2:prompt: the field is missing; did you mean 'promt'"),
    (b'{"prompt": "a"}', r"data.jsonl:2:answer: the field is missing; the fields of this line are prompt"),
    (b'{"prompt": 5, "answer": "1"}', r"data.jsonl:2:prompt: expected text, a list of messages.*, found a number"),
    (b'{"prompt": [], "answer": "1"}', r"data.jsonl:2:prompt: expected text.*found a list"),
    (b'{"prompt": [1, -2], "answer": "1"}', r"data.jsonl:2:prompt: expected text"),
    (b'{"prompt": [1, true], "answer": "1"}', r"data.jsonl:2:prompt: expected text"),
    (b'{"prompt": [{"role": "user"}], "answer": "1"}', r"data.jsonl:2:prompt\[0\]: the message has no 'content'"),
    (
        b'{"prompt": [{"role": "user", "content": 1}], "answer": "1"}',
        r"data.jsonl:2:prompt\[0\].content: expected text",
    ),
    (b'{"prompt": [{"role": "u", "content": "x", "k": 1}], "answer": "1"}', r"prompt\[0\]: .* found 'k' too"),
    (b'{"prompt": "  ", "answer": "1"}', r"data.jsonl:2:prompt: the text is empty"),
    (b'{"prompt": "a", "answer": ""}', r"data.jsonl:2:answer: the text is empty"),
    (b'{"prompt": "a", "answer": true}', r"data.jsonl:2:answer: expected text, found a truth value \(true\)"),
    (b'{"prompt": "a", "answer": null}', r"data.jsonl:2:answer: expected text, found null"),
    (b'{"prompt": "a", "answer": ["1"]}', r"data.jsonl:2:answer: expected text, found a list"),
    (b'{"prompt": "a", "answer": 1e999}', r"data.jsonl:2: not JSON that can be read: the number 1e999 is out of range"),
    (b'{"prompt": "a", "answer": -Infinity}', r"data.jsonl:2: not JSON that can be read: -Infinity is not"),
    (b'{"prompt": "a", "prompt": "b", "answer": 1}', r"data.jsonl:2: .*the field 'prompt' is given twice"),
    (b'{"prompt": "a", "answer": 1, "x": {"y": 1, "y": 2}}', r"data.jsonl:2: .*the field 'y' is given twice"),
    (b'{"prompt": "a", "answer": "1", "solution": 5}', r"data.jsonl:2:solution: expected text"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_line_is_named_or_skipped(write, line, message):
    path = write(row(1), line, row(3))
    with pytest.raises(UserError, match=message):
        jsonl_task(path)
    task = jsonl_task(path, skip_bad=True, eval_fraction=0.0)
    assert [p.answer for p in task.train] == ["1", "3"]
    (skipped,) = task.skipped
    assert skipped.where.split(":")[0].endswith("data.jsonl") and skipped.what
    assert "1 bad records were left out" in task.notes[0]


def test_line_of_ten_megabytes(write):
    path = write(row(1), b'{"prompt": "' + b"a" * (21 << 20) + b'", "answer": "1"}', row(3))
    with pytest.raises(UserError, match="data.jsonl:2: the line is longer than 10 MiB"):
        jsonl_task(path)
    task = jsonl_task(path, skip_bad=True, eval_fraction=0.0)
    assert [p.id for p in task.train] == ["data.jsonl:1", "data.jsonl:3"]


def test_files_that_are_empty_bad_or_absent(write, tmp_path):
    with pytest.raises(UserError, match="has no problems in it: the file is empty"):
        jsonl_task(write(b"", b"  "))
    with pytest.raises(UserError, match="all of its 2 rows are bad; the first is"):
        jsonl_task(write(b"x", b"y"), skip_bad=True)
    with pytest.raises(UserError, match="cannot read .*absent.jsonl: No such file"):
        jsonl_task(str(tmp_path / "absent.jsonl"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder has no data files; their names end in .jsonl"):
        jsonl_task(str(tmp_path / "folder"))


def test_one_file_is_divided_by_hash(write):
    lines = [row(k) for k in range(300)]
    task = jsonl_task(write(*lines))
    assert len(task.train) + len(task.eval) == 300 and 10 <= len(task.eval) <= 50
    shuffled = jsonl_task(write(*lines[::-1], name="other.jsonl"))
    assert {p.prompt for p in shuffled.eval} == {p.prompt for p in task.eval}
    assert task.fingerprint != shuffled.fingerprint
    only = jsonl_task(write(row(1), row(2)), eval_fraction=1.0)
    assert not only.train and [p.answer for p in only.eval] == ["1", "2"]
    with pytest.raises(UserError, match="all 2 problems .* went to evaluation"):
        jsonl_task(write(row(1), row(2)), eval_fraction=0.999999)
    with pytest.raises(UserError, match=r"must be in \[0, 1\], found 1.5"):
        jsonl_task(write(row(1)), eval_fraction=1.5)


def test_duplicates_and_leaks_are_reported_and_kept_out_of_training(write):
    train = write(row(1), row(2), row(2), row(3), name="train.jsonl")
    held_out = write({"prompt": " question  3 ", "answer": "3"}, row(9), name="test.jsonl")
    task = jsonl_task(train, held_out)
    assert [p.answer for p in task.train] == ["1", "2", "2"] and [p.answer for p in task.eval] == ["3", "9"]
    assert task.overlap.duplicates == (("train.jsonl:2", "train.jsonl:3"),)
    assert task.overlap.leaks == (("train.jsonl:4", "test.jsonl:1"),)
    assert len(task.notes) == 2 and "train.jsonl:4 and test.jsonl:1" in task.notes[1]
    with pytest.raises(UserError, match="no training problems are left"):
        jsonl_task(train, train)


def test_verifiers(write):
    numbers = jsonl_task(write(row(1), row(2, "1,000")), eval_fraction=0.0)
    assert numbers.verify(numbers.train[1], "so\n#### 1000") == 1.0
    words = jsonl_task(write(row(1), row(2, "yes")), eval_fraction=0.0)
    assert words.verify(words.train[1], " yes\n") == 1.0
    boxed = jsonl_task(write(row(1)), eval_fraction=0.0, extract="boxed")
    assert boxed.verify_many(boxed.train, [r"\boxed{1}"])[0].status == "pass"
    with pytest.raises(UserError, match="data.jsonl:2:answer: expected a number, found 'yes'"):
        jsonl_task(write(row(1), row(2, "yes")), verifier="number", eval_fraction=0.0)


def test_template_and_chat(write):
    task = jsonl_task(write(row(1)), template="{prompt} Think {step by step}.", chat=True, eval_fraction=0.0)
    assert task.train[0].prompt == ({"role": "user", "content": "question 1 Think {step by step}."},)
    with pytest.raises(UserError, match="does not contain {prompt}"):
        jsonl_task(write(row(1)), template="x")


def test_gsm8k_as_published(write):
    line = {"question": "How many?", "answer": "4 * 250 = <<4*250=1000>>1000\nDone.\n#### 1,000"}
    task = gsm8k_task(write(line), eval_fraction=0.0)
    (problem,) = task.train
    assert (problem.prompt, problem.answer) == ("How many?", "1,000")
    assert task.demonstrations(np.random.default_rng(0), 1) == [("How many?", "4 * 250 = 1000\nDone.\n#### 1,000")]
    assert task.verify(problem, "#### 1000") == 1.0 and task.verify(problem, "1000") == 0.0
    assert len(task.splitter("4 * 250 = 1000\nDone.\n#### 1,000")) == 3
    assert "<<" in gsm8k_task(write(line), eval_fraction=0.0, calculator=True).train[0].metadata["solution"]
    for bad, message in [("no marker", "ends in '#### N'"), ("#### many", "expected a number after")]:
        with pytest.raises(UserError, match=f"data.jsonl:1:answer: .*{message}"):
            gsm8k_task(write({"question": "q", "answer": bad}))


def test_no_demonstrations_without_solutions(write):
    with pytest.raises(UserError, match="no worked solutions"):
        jsonl_task(write(row(1)), eval_fraction=0.0).demonstrations(np.random.default_rng(0), 1)


def test_real_gsm8k(data_dir):
    folder = data_dir / "gsm8k"
    task = load_task("gsm8k", train=str(folder / "train.jsonl"), eval=str(folder / "test.jsonl"))
    assert len(task.eval) == 1319 and 7400 <= len(task.train) <= 7473
    assert not {problem_hash(p) for p in task.train} & {problem_hash(p) for p in task.eval}
    verdicts = task.verify_many(task.train, [p.metadata["solution"] for p in task.train])
    assert all(v.status == "pass" for v in verdicts)


def test_real_math500(data_dir):
    path = data_dir / "math500" / "test500.jsonl"
    task = load_task(str(path), prompt_field="problem", extract="boxed")
    assert len(task.train) + len(task.eval) == 500
    right = task.verify_many(task.train, [p.metadata["solution"] for p in task.train])
    assert sum(v.score for v in right) / len(right) > 0.97  # exact words: nearly always the box's own text


def test_raw_gsm8k_is_recognised(write):
    lines = [{"question": f"How many {k}?", "answer": f"Count.\n{k} = <<{k}={k}>>{k}\n#### {k}"} for k in range(3)]
    task = load_task(write(*lines), eval_fraction=0.0)
    assert [problem.answer for problem in task.train] == ["0", "1", "2"]
    assert task.verify(task.train[2], "So it is 2.\n#### 2.0") == 1.0
    assert task.train[2].metadata["solution"] == "Count.\n2 = 2\n#### 2"
    assert any("end in '#### N'" in note for note in task.notes)
    with pytest.raises(UserError, match=r"data.jsonl:4:answer: 3 of 4 answers are solutions that end in '#### N'"):
        load_task(write(*lines, {"question": "x", "answer": "4"}))


def test_the_prompt_is_found_under_its_usual_names(write):
    for name in ("prompt", "question", "problem"):
        assert load_task(write({name: "q", "answer": "1"}), eval_fraction=0.0).train[0].prompt == "q"
    other = {"query": "q", "answer": "1", "level": 3}
    with pytest.raises(UserError, match="data.jsonl:1:prompt: the field is missing"):
        load_task(write(other))
    (problem,) = load_task(write(other), prompt_field="query", eval_fraction="0").train
    assert problem.prompt == "q" and problem.metadata["level"] == 3


def test_verifier_and_splitter_with_options_of_their_own(write, tmp_path):
    path = write(row(1, "10"), row(2, "20"))
    options = {
        "verifier": "number",
        "verifier.tolerance": "0.1",
        "splitter": "regex",
        "splitter.pattern": "; *",
        "extract": "last_number",
        "eval_fraction": "0",
    }
    task = load_task(path, **options)
    assert task.verify(task.train[0], "about 10.5") == 1.0 and task.verify(task.train[0], "12") == 0.0
    assert task.splitter("a; b") == [(0, 3), (3, 4)]
    (tmp_path / "mine.py").write_text(
        "def reward(problem, response):\n    return float(len(response) < 4)\n"
        "def broken(problem, response):\n    return problem.nothing\n"
        "def loud(problem):\n    return 1.0\n"
    )
    mine = f"{tmp_path}/mine.py:reward"
    task = load_task(path, verifier=f"0.75*exact,0.25*{mine}", eval_fraction=0)
    assert [task.verify(task.train[0], text) for text in ("10", "11", "wrong")] == [1.0, 0.25, 0.0]
    for verifier, message in [
        ("nmber", r"unknown verifier 'nmber' \(--task.options verifier\): did you mean 'number'"),
        (mine.replace("reward", "broken"), "failed on the first problem, data.jsonl:1.*AttributeError"),
        (mine.replace("reward", "loud"), r"called as loud\(problem, response\)"),
        ("x*exact,number", "the weight 'x'"),
        ("-1*exact,number", "must be a positive number"),
        ("exact,", "cannot read the verifiers"),
    ]:
        with pytest.raises(UserError, match=message):
            load_task(path, verifier=verifier, eval_fraction=0)
    with pytest.raises(UserError, match="the verifier 'exact' has no option 'tolerance'"):
        load_task(path, eval_fraction=0, **{"verifier": "exact", "verifier.tolerance": 1})
    with pytest.raises(UserError, match="none of the verifiers .* has the option 'size'"):
        load_task(path, eval_fraction=0, **{"verifier": "exact,number", "verifier.size": 1})


def test_a_character_tokenizer_from_the_problems(write):
    task = load_task(write({"prompt": "ab", "answer": "1"}), alphabet="auto", template="Q {prompt}", eval_fraction=0)
    assert task.tokenizer().encode("Q ab1") and task.alphabet == " 1Qab"
    assert load_task(write({"prompt": "ab", "answer": "1"}), eval_fraction=0).tokenizer() is None
