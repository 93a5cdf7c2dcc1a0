"""The benchmark of slots runs in its smallest size, and its engines agree."""

import json
import sys

import pytest

from experiments.benchmarks import slots


@pytest.mark.slow
def test_slots_against_batches(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["slots", "--smoke", "--out", str(tmp_path / "out.json")])
    slots.main()
    found = json.loads((tmp_path / "out.json").read_text())
    for lengths in ("lognormal", "equal"):
        assert {one["equal_responses"] for one in found[lengths].values()} == {4}
        assert all(0 < one["utilisation"] <= 1 for one in found[lengths].values())
    assert found["equal"]["slots"]["wasted_positions"] == 0
    assert "tokens per CPU s" in capsys.readouterr().out
