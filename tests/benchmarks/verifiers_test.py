"""The benchmark of the verifiers runs on a few pairs and counts right and wrong ones apart."""

import json
import sys

import pytest

from experiments.benchmarks import verifiers

pytest.importorskip("mpmath", reason="needs the extra 'math'")


def test_smoke(data_dir, monkeypatch, tmp_path, capsys):
    if not (data_dir.parent / "cases").is_dir():
        pytest.skip(f"no cases beside {data_dir}")
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["verifiers", "--data", str(data_dir), "--smoke", "--out", str(out)])
    monkeypatch.setattr(verifiers.importlib.util, "find_spec", lambda name: None if name == "math_verify" else 1)
    verifiers.main()
    results = json.loads(out.read_text())
    for row in results["rewritings"].values():
        assert row["own passed"] == row["own"] > 0 and row["crossed passed"] == 0
    assert all(wrong == 0 for table in results["strict"].values() for *_, wrong in table.values())
    assert "MathVerifier, plain numbers" in capsys.readouterr().out


def test_counts():
    cases = [{"kind": "a", "right": True}, {"kind": "a", "right": False}, {"kind": "b", "right": False}]
    assert verifiers._tally(cases, "right", [True, False, True]) == {"a": [1, 1, 1, 0], "b": [0, 0, 1, 1]}


def test_the_other_reference_is_written_differently():
    references = [r"90^\circ", "90", r"\frac12", r"\dfrac12"]
    assert verifiers._others(references) == [r"\frac12", r"\frac12", r"90^\circ", r"90^\circ"]
