"""The benchmark of attention runs in its smallest size."""

import json
import sys

import pytest

from experiments.benchmarks import attention


@pytest.mark.slow
def test_blocks_against_one_array_of_scores(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["attention", "--smoke", "--out", str(tmp_path / "out.json")])
    attention.main()
    kept = json.loads((tmp_path / "out.json").read_text())
    found = kept["1 x 40, 2 layers"]
    assert kept["1 x 40, extrapolated"]["layers"] == 30
    assert found["ratio"]["least"] <= found["ratio"]["median"] <= found["ratio"]["most"]
    assert all(len(seconds) == 1 for seconds in found["seconds"].values())
    assert "| 1 x 40 | 2 |" in capsys.readouterr().out
