"""The trace of one step."""

import gzip
import json

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.runs.metrics_log import read_metrics
from prm_jax.runs.profiling import TRACE, trace_into
from tests.runs.fitting_test import OPTIONS, run_loop


def test_one_step_is_traced_and_nothing_else_changes(tmp_path):
    import dataclasses

    plain = run_loop(tmp_path / "plain")
    traced = run_loop(tmp_path / "traced", options=dataclasses.replace(OPTIONS, profile=3))
    np.testing.assert_array_equal(plain.state["w"], traced.state["w"])
    losses = [[r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("plain", "traced")]
    assert losses[0] == losses[1]
    assert not (tmp_path / "plain" / "profile").exists()
    with gzip.open(tmp_path / "traced" / "profile" / TRACE) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert any(name.startswith("drawing the batch of step 3") for name in names)
    assert any(name.startswith("step 3") for name in names)
    assert not any("step 4" in name for name in names)
    assert list((tmp_path / "traced" / "profile").glob("*.xplane.pb"))


def test_two_traces_at_once_are_refused(tmp_path):
    jax.profiler.start_trace(str(tmp_path / "other"))
    try:
        with pytest.raises(UserError, match="--profile"), trace_into(tmp_path / "mine"):
            pass
    finally:
        jax.profiler.stop_trace()
