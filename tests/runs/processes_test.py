"""Several processes: how they find each other, exchange data on hosts, and end together."""

import json
import math

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.runs import distributed, processes, wire
from prm_jax.runs.distributed_options import DistributedOptions
from tests.several import REPO, free_port, run_together

pytestmark = pytest.mark.heavy

WORKER = str(REPO / "tests" / "runs" / "processes_worker.py")


def _run(mode, count, **more):
    return run_together([[WORKER, mode]] * count, **more)


def _results(ended):
    assert all(one.code == 0 for one in ended), [one.err[-2000:] for one in ended]
    return [json.loads(one.out.splitlines()[-1]) for one in ended]


# ------------------------------------------------------------------------------------------ one process


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_shares_cover_everything_once_and_differ_by_at_most_one(number, of):
    parts = [list(range(number))[processes.share(number, of=of, at=at)] for at in range(of)]
    assert sum(parts, []) == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_exchanges_with_itself():
    assert processes.count() == 1 and processes.index() == 0 and processes.is_first()
    assert processes.gather({"a": 1}) == [{"a": 1}]
    assert processes.broadcast_from_first(3) == 3
    assert processes.any_true(True) and not processes.any_true(False)
    processes.barrier("nobody else")
    processes.agree("anything", object())
    assert processes.share(5) == slice(0, 5)
    np.testing.assert_array_equal(processes.to_host(np.arange(3)), np.arange(3))


def test_plain_data_and_arrays_survive_the_wire():
    value = {
        "arrays": [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 4), np.float32), np.array(True)],
        "nested": {"tuple": (1, "text\n", None), "list": [], "empty": {}},
        "array": {"dict": 1, "tuple": 2},  # keys that the format itself uses
        "numbers": [1.5, -math.inf, True, 2**40],
    }
    back = wire.decode(wire.encode(value))
    for given, found in zip(value.pop("arrays"), back.pop("arrays"), strict=True):
        assert found.dtype == given.dtype
        np.testing.assert_array_equal(found, given)
    assert back == value and isinstance(back["nested"]["tuple"], tuple)
    long = np.zeros(100_000, np.int32)
    assert len(wire.encode(long)) < 2_000  # compressed
    np.testing.assert_array_equal(wire.decode(wire.encode(long)), long)


@pytest.mark.parametrize("value", [{1: "key"}, {1, 2}, object(), np.array(["text"]), np.array([object()])])
def test_other_data_is_refused(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        wire.encode(value)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (dict(coordinator="host:1"), r"needs --distributed.processes .*and --distributed.process-id"),
        (dict(processes=2), r"needs --distributed.coordinator .*and --distributed.process-id"),
        (dict(coordinator="host:1", processes=2), r"needs --distributed.process-id \(\$PRM_JAX_PROCESS_ID\) as well"),
        (dict(coordinator="host:1", processes=2, process_id=2), r"process-id is 2, but there are 2 processes .*0 to 1"),
        (dict(coordinator="host", processes=2, process_id=0), r"is 'host'; expected HOST:PORT"),
        (dict(coordinator="host:99999", processes=2, process_id=0), r"expected HOST:PORT"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options, found, monkeypatch):
    for name in (distributed.COORDINATOR, distributed.PROCESSES, distributed.PROCESS_ID):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=found):
        distributed.initialize(DistributedOptions(**options))


def test_the_environment_stands_for_the_options(monkeypatch):
    monkeypatch.setenv("PRM_JAX_COORDINATOR", "host:1")
    monkeypatch.setenv("PRM_JAX_PROCESSES", "two")
    with pytest.raises(UserError, match="PRM_JAX_PROCESSES is 'two'; expected a number"):
        distributed.initialize()
    monkeypatch.setenv("PRM_JAX_PROCESSES", "2")
    with pytest.raises(UserError, match="process-id"):
        distributed.initialize()
    monkeypatch.setenv("PRM_JAX_PROCESSES", "1")  # alone, whatever else is set
    distributed.initialize()
    assert processes.count() == 1


def test_a_coordinator_that_does_not_answer_is_reported_at_the_deadline(monkeypatch):
    where = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=rf"the coordinator {where} .* does not answer after 0.3 s: .*--distributed"):
        distributed.initialize(DistributedOptions(where, 2, 1, timeout=0.3))


# -------------------------------------------------------------------------------------- several processes


def test_processes_exchange_data_and_notice_that_they_differ():
    found = _results(_run("exchange", 3))
    assert [one["count"] for one in found] == [3, 3, 3]
    assert [one["first"] for one in found] == [True, False, False]
    for one in found:
        assert [len(rows) for rows in one["rows"]] == [1, 2, 3] and one["rows"][1][1] == [4, 5, 6, 7]
        assert one["texts"] == ["é0", "é1", "é2"] and one["pair"] == [1, None]
        assert one["big"] == [0, 3_000_000, 6_000_000]
        assert one["sent"] == {"from": 0} and one["any"] == [True, False]
        assert "disagree on options:\n  seed: 0 in process 0, 1 in processes 1, 2\n" in one["disagree"]
        assert "beta" not in one["disagree"]
        assert '"another place" in process 0' in one["places"]


def test_processes_with_other_versions_are_refused():
    for one in _results(_run("versions", 2)):
        assert one["error"].startswith("UserError: the processes of this run disagree on versions:\n  jax: ")
        assert '"0.0.1" in process 1' in one["error"] and "python" not in one["error"]


def test_arrays_are_placed_and_fetched_across_processes():
    import jax

    found = _results(_run("arrays", 2, devices=2))
    assert [one["own"] for one in found] == [[0, 2], [4, 6]]
    for one in found:
        assert one["spans"] and one["back"] == (2 * np.arange(32.0).reshape(8, 4)).tolist()
        assert one["key"] == jax.random.key_data(jax.random.key(3)).tolist()


def test_a_run_directory_is_written_by_one_process_and_seen_by_all(tmp_path):
    found = _results(run_together([[WORKER, "run_directory", str(tmp_path)]] * 2))
    assert [one["writer"] for one in found] == [True, False]
    for one in found:
        assert "is not visible in process 1 on " in one["unseen"] and "all processes share" in one["unseen"]
        assert one["left"] == []
        assert "disagree on options:\n  seed: 0 in process 0, 1 in process 1\n" in one["options"]
        assert "already holds a run" in one["again"]
        assert "No such file" in one["failed"]
        assert one["metrics"] == [1, 1] and one["resumed"]
    assert found[0]["failed"].startswith("FileNotFoundError: ")
    assert found[1]["failed"].startswith("UserError: process 0 could not touch it: ")


def test_a_process_that_fails_ends_all_others_within_seconds():
    ended = _run("fail", 4, seconds=90)
    assert ended[1].code == 2 and "the problem of process 1" in ended[1].err
    for place in (0, 2, 3):
        assert ended[place].code == 2, ended[place]
        assert "process 1 on" in ended[place].err and "the problem of process 1" in ended[place].err
    assert max(one.seconds for one in ended) < 30


def test_a_process_that_does_not_come_is_named_at_the_deadline():
    first, second = _run("slow", 2)
    assert "has waited 1 s for process 1 at 'the rollouts'" in json.loads(first.out)["late"]
    assert second.code == 0 or "process 0" in second.err


def test_missing_processes_are_reported_at_the_deadline():
    code = "from prm_jax import runs; runs.initialize(runs.DistributedOptions(timeout=1.0))"
    (ended,) = run_together([["-c", code]], number=2)
    assert ended.code == 69
    assert "not all 2 processes have connected to 127.0.0.1:" in ended.err and "--distributed.timeout" in ended.err
