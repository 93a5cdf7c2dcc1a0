"""Rows of every kind of data file, and one message with file and line for everything wrong with one."""

import json
import os

import pytest

from prm_jax.data import load_task
from prm_jax.data.rows import read_rows
from prm_jax.data.step_data import read_step_data
from prm_jax.errors import UserError
from prm_jax.models import hub

_ROWS = [{"prompt": f"q{k}", "answer": k} for k in range(5)]


def _read(path):
    return [row() for _, row in read_rows(path)]


def test_json_lines_and_lists(tmp_path):
    lines, listed = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text("\n".join(map(json.dumps, _ROWS)))
    listed.write_text("\ufeff" + json.dumps(_ROWS, indent=1))
    assert _read(lines) == _read(listed) == _ROWS
    assert [where for where, _ in read_rows(listed)][:2] == [f"{listed}:2[0]", f"{listed}:6[1]"]
    listed.write_text(" [ ] ")
    assert _read(listed) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": NaN}]', r"x.json:2\[1\]: .*NaN is not a JSON value"),
        ('[{"a": 1},\n\n{"a": 1, "a": 2}]', r"x.json:3\[1\]: .*'a' is given twice"),
        ('[{"a": 1},\n{"a": 1e999}]', r"x.json:2\[1\]: .*1e999 is out of range"),
        ('[{"a": 1},\n5]', r"x.json:2\[1\]: expected an object"),
        ('[{"a": 1}\n{"b": 1}]', "x.json:1.*expected ',' or the end of the list"),
        ('[{"a": 1}', "x.json:1.*expected ',' or the end of the list"),
        ('[{"a": 1}] x', "x.json:1.*end of the list"),
        ('[{"a": }]', "x.json:1.*Expecting value"),
        ("[" * 100_000, "x.json:1.*not JSON that can be read"),
    ],
)
def test_bad_lists(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        _read(path)


def test_a_bad_element_of_a_list_can_be_skipped(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": NaN}, {"prompt": "c", "answer": 3}]')
    task = load_task(str(path), skip_bad="true", eval_fraction=0)
    assert [problem.answer for problem in task.train] == ["1", "3"] and len(task.skipped) == 1


def test_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('\ufeffprompt,answer,note\r\n"a, ""b""\nc",1,\r\n\r\nq,2,n\r\n')
    assert _read(path) == [{"prompt": 'a, "b"\nc', "answer": "1"}, {"prompt": "q", "answer": "2", "note": "n"}]
    assert [where for where, _ in read_rows(path)] == [f"{path}:2", f"{path}:5"]
    assert [p.answer for p in load_task(str(path), eval_fraction=0).train] == ["1", "2"]
    (tmp_path / "x.tsv").write_text("prompt\tanswer\nq\t3\n")
    assert _read(tmp_path / "x.tsv") == [{"prompt": "q", "answer": "3"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2,3\n", "x.csv:2: expected 2 cells as in the header, found 3"),
        (b"a,a\n1,2\n", "x.csv:1: the column 'a' occurs more than once"),
        (b"a,b\n1,\xff\n", "x.csv:.*not CSV that can be read"),
        (b'a,b\n1,"x\n', "x.csv:2: not CSV that can be read"),
        (b"a,b\n1,\x00\n", "x.csv:2"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows = _read(path)
        # Where the CSV reader lets a NUL through, the field's check refuses it.
        assert "\0" in rows[0]["b"]
        load_task(str(path), prompt_field="b", answer_field="a")


def test_parquet_arrow_and_saved_data_sets(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([*_ROWS, {"prompt": "last", "answer": None}])
    pq.write_table(table, tmp_path / "x.parquet")
    expected = [*_ROWS, {"prompt": "last"}]
    assert _read(tmp_path / "x.parquet") == expected
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as out:
        out.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (saved / name).write_text("{}")
    assert _read(saved) == expected and _read(saved.parent) == expected
    with pa.ipc.new_file(str(tmp_path / "f.arrow"), table.schema) as out:
        out.write_table(table)
    assert _read(tmp_path / "f.arrow") == expected
    assert load_task(str(saved), skip_bad=True).skipped[0].where.endswith(":6:answer")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.arrow").write_bytes(b"no")
    for name in ("bad.parquet", "bad.arrow"):
        with pytest.raises(UserError, match=f"{name}: not .* that can be read"):
            _read(tmp_path / name)


def test_splits_of_a_directory(tmp_path):
    for name, rows in (("train-00000-of-00001.jsonl", _ROWS[:3]), ("test-00000-of-00001.jsonl", _ROWS[3:])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    task = load_task(str(tmp_path), eval=f"{tmp_path}/test")
    assert [p.answer for p in task.train] == ["0", "1", "2"] and [p.answer for p in task.eval] == ["3", "4"]
    with pytest.raises(UserError, match="has no split 'validation'; it has test, train, so name one as"):
        load_task(str(tmp_path), eval=f"{tmp_path}/validation")


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="pipe.jsonl: expected a file, found a pipe"):
        load_task(str(tmp_path / "pipe.jsonl"))
    with pytest.raises(UserError, match="/dev/zero: expected a file, found a device"):
        load_task("jsonl", train="/dev/zero")
    with pytest.raises(UserError, match="found a pipe"):
        read_step_data(tmp_path / "pipe.jsonl")


def test_bad_step_data_can_be_skipped_and_counted(tmp_path):
    path = tmp_path / "steps.jsonl"
    good = {"prompt": "p", "steps": ["a", "b"], "labels": [1, 0]}
    path.write_text("\n".join(["nonsense", json.dumps(good), json.dumps({**good, "labels": [1]}), json.dumps(good)]))
    skipped: list = []
    assert len(read_step_data(path, skipped=skipped)) == 2
    assert [bad.where.rpartition("/")[2] for bad in skipped] == ["steps.jsonl:1", "steps.jsonl:3:labels"]
    with pytest.raises(UserError, match="steps.jsonl:1: not JSON"):
        read_step_data(path)
    path.write_text("nonsense")
    with pytest.raises(UserError, match="all of its 1 records are bad; the first is .*steps.jsonl:1"):
        read_step_data(path, skipped=[])


def test_data_sets_by_their_name_on_the_hub(tmp_path, monkeypatch):
    folder = tmp_path / "snapshot" / "main"
    folder.mkdir(parents=True)
    for name, rows in (("train.jsonl", _ROWS[:3]), ("test.jsonl", _ROWS[3:])):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    asked = []

    def find(name, *, repo_type):
        asked.append((name, repo_type))
        return folder.parent

    monkeypatch.setattr(hub, "find_model", find)
    monkeypatch.chdir(tmp_path)
    task = load_task("some-org/sums", eval="some-org/sums/test")
    assert [p.answer for p in task.train] == ["0", "1", "2"] and [p.answer for p in task.eval] == ["3", "4"]
    assert asked == [("some-org/sums", "dataset")] * 2
    with pytest.raises(UserError, match="unknown task 'snapshot/absent'"):
        load_task("snapshot/absent")  # a folder that is here
