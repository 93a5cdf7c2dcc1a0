"""The weak-scaling script on one and two devices."""

import dataclasses
import json
import sys

import jax
import pytest

from experiments.benchmarks import weak_scaling


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs 2 devices")
def test_the_work_of_a_device_does_not_grow_with_their_number(monkeypatch, tmp_path, capsys):
    config = dataclasses.replace(weak_scaling.CONFIG, num_layers=1, hidden_size=64, intermediate_size=128, head_dim=8)
    monkeypatch.setattr(weak_scaling, "CONFIG", config)
    monkeypatch.setattr(weak_scaling, "TOKENS", 16)
    monkeypatch.setattr(weak_scaling, "COUNTS", (1, 2))
    monkeypatch.setattr(weak_scaling, "LAYOUTS", {"fsdp": lambda n: (1, n, 1)})
    monkeypatch.setattr(sys, "argv", ["weak_scaling", "--json", str(tmp_path / "out.json")])
    weak_scaling.main()
    rows = json.loads((tmp_path / "out.json").read_text())["meshes"]["fsdp"]
    assert rows["1"]["sent"] == rows["1"]["sent_minimum"] == 0 < rows["2"]["sent"]
    assert rows["2"]["operations"] <= 1.1 * rows["1"]["operations"]
    assert rows["2"]["operations"] <= 1.1 * rows["2"]["operations_ideal"]
    assert "| fsdp | 2 |" in capsys.readouterr().out
