"""The benchmark of attention runs in its smallest size."""

import json
import sys

import pytest

from experiments.benchmarks import attention


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--alone"]])
def test_blocks_against_one_array_of_scores(monkeypatch, tmp_path, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["attention", "--smoke", "--out", str(tmp_path / "out.json"), *arguments])
    attention.main()
    kept = json.loads((tmp_path / "out.json").read_text())
    found = [kept["1 x 40, 2 layers"]] if not arguments else [kept["1 x 40, alone"][k] for k in ("forward", "gradient")]
    for timed in found:
        assert timed["ratio"]["least"] <= timed["ratio"]["median"] <= timed["ratio"]["most"]
        assert all(len(seconds) == 1 for seconds in timed["seconds"].values())
    assert capsys.readouterr().out.startswith("| 1 x 40 |")
