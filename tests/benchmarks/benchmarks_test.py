"""The benchmark scripts run in their smallest sizes, with no peer installed, and count what they say they count."""

import dataclasses
import json
import math
import sys

import pytest

from experiments.benchmarks import generation, train_step


def test_arrays_over_the_vocabulary_are_counted_where_they_are_written():
    text = """HloModule m
%fused_computation (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %e = f32[8,16]{1,0} exponential(%p)
}
ENTRY %main (a: f32[8,16]) -> f32[8] {
  %a = f32[8,16]{1,0} parameter(0)
  %f = f32[8,16]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation
  %b = f32[128]{0} bitcast(%f)
  ROOT %r = f32[8]{0} reduce(%f), dimensions={1}
}
"""
    assert train_step.vocabulary_arrays(text, 128) == 1
    assert train_step.vocabulary_arrays(text, 129) == 0


@pytest.mark.slow
def test_training_steps_without_the_peer(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train_step, "SMOKE", dataclasses.replace(train_step.SMOKE, repeats=1, num_layers=1))
    monkeypatch.setitem(sys.modules, "tunix", None)
    monkeypatch.setattr(sys, "argv", ["train_step", "--smoke", "--json", str(tmp_path / "out.json")])
    train_step.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert "pip install" in found["missing"]
    assert all(math.isfinite(x) and x >= 0 for row in found["rows"].values() for x in row.values())
    assert set(found["rows"]) >= {"prm_jax: GRPO", "prm_jax: PRIME (online PRM)"}
    assert "prm_jax: GRPO" in capsys.readouterr().out


@pytest.mark.slow
def test_generation_of_the_tiny_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generation", "tiny", "--smoke"])
    generation.main()
    assert "32 prompts x 8 samples, 8 new tokens" in capsys.readouterr().out
