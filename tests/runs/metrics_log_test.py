"""Metrics: JSON lines that survive kills and resumes, and sinks that may fail."""

import json
import logging
import math

import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.runs.metrics_log import MetricsLog, TensorBoardSink, atomic_write, read_metrics, scalars


def test_records_round_trip(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    written = log.log(1, {"a/loss": jnp.float32(0.1), "n": np.int64(3), "b": True, "x": 2.5})
    assert written == {"a/loss": 0.100000001, "n": 3, "b": 1, "x": 2.5}
    log.log(2, {"a/loss": math.nan, "up": jnp.inf, "down": -math.inf, "one": jnp.ones((1,))})
    log.close()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    first, second = read_metrics(tmp_path)
    assert first["step"] == 1 and np.float32(first["a/loss"]) == np.float32(0.1)
    assert math.isnan(second["a/loss"]) and second["up"] == math.inf and second["down"] == -math.inf
    assert second["one"] == 1.0 and second["seconds"] >= first["seconds"] >= 0


def test_every_float32_round_trips(tmp_path):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32) * 10.0 ** np.arange(-20, 20).repeat(5)
    values = values.astype(np.float32)
    back = scalars({str(i): v for i, v in enumerate(values)})
    np.testing.assert_array_equal(np.array(list(back.values()), np.float32), values)


def test_a_metric_that_is_not_a_scalar_is_refused():
    for bad in (jnp.zeros(2), "text", None, [1.0], {}):
        with pytest.raises(TypeError, match="'m'"):
            scalars({"m": bad})


def test_incomplete_lines_and_rewinding(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.log(step, {"v": step})
        log.log(step, {"eval": -step})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 6, "v"')  # killed in the middle of a write
    assert len(read_metrics(path)) == 10
    log = MetricsLog(path)
    assert log.rewind(3) == 4
    log.log(4, {"v": 40})
    log.close()
    assert [(r["step"], r.get("v", r.get("eval"))) for r in read_metrics(path)] == [
        (1, 1), (1, -1), (2, 2), (2, -2), (3, 3), (3, -3), (4, 40)
    ]  # fmt: skip
    seconds = [r["seconds"] for r in read_metrics(path)]
    assert seconds == sorted(seconds)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: "):
        read_metrics(path)
    path.write_text('{"step": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: expected an object with an integer step"):
        read_metrics(path)
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "other")


def test_a_failing_sink_warns_once_and_is_disabled(tmp_path, caplog):
    calls = []

    class Flaky:
        def log(self, step, metrics):
            calls.append(step)
            if step == 2:
                raise ConnectionError("no route")

        def close(self):
            calls.append("closed")

    def broken(step):
        raise RuntimeError("cannot start")

    with caplog.at_level(logging.WARNING):
        log = MetricsLog(tmp_path / "m.jsonl", sinks=[lambda step: Flaky(), broken])
        for step in (1, 2, 3):
            log.log(step, {"v": 1.0})
        log.close()
    assert calls == [1, 2]
    assert len(caplog.records) == 2 and "no route" in caplog.text and "cannot start" in caplog.text
    assert len(read_metrics(tmp_path / "m.jsonl")) == 3


@pytest.mark.optional
def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(tmp_path / "m.jsonl", sinks=[lambda step: TensorBoardSink(tmp_path, first_step=step)])
    for step in (5, 6):
        log.log(step, {"policy/loss": 0.5, "bad": math.nan})
    log.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert content.count(b"policy/loss") == 2


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
