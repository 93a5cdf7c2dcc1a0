"""The doctor's report."""

import json

import pytest

from prm_jax import cli, doctor
from prm_jax.verifiers.sandbox import levels


def test_report_is_complete_and_plain():
    report = json.loads(json.dumps(doctor.inspect()))
    assert report["versions"]["jax"] and report["python"]["ok"]
    assert report["devices"]["count"] >= 1 and report["devices"]["devices"][0]["kind"]
    assert report["host"]["cores"] >= 1 and report["host"]["memory_gib"] > 0
    assert report["disk"]["free_gib"] > 0
    assert {"gguf", "math", "plots", "wandb", "smollm2", "tpu", "cuda13"} <= set(report["extras"])
    for extra, state in report["extras"].items():
        assert state["present"] == (not state["missing"]) and (f"[{extra}]" in state["install"]) == bool(
            state["missing"]
        )
    assert report["sandbox"]["level"] in ("bubblewrap", "landlock", "none")
    text = doctor.render(report)
    assert "jax" in text and "sandbox" in text and "pip install 'prm-jax[tpu]'" in text


def test_failures_are_reported_and_not_raised(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "local_devices", lambda: 1 / 0)
    monkeypatch.setattr(levels, "available_levels", lambda: {"bubblewrap": "not installed", "landlock": "old kernel"})
    monkeypatch.setattr(doctor, "_installed", lambda name: False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    report = doctor.inspect()
    assert "ZeroDivisionError" in report["devices"]["error"] and report["sandbox"]["level"] == "none"
    assert not any(state["present"] for state in report["extras"].values())
    text = doctor.render(report)
    assert "jax cannot start" in text and "install bubblewrap" in text and "JAX_COMPILATION_CACHE_DIR" in text


@pytest.mark.parametrize(
    ("bubblewrap", "landlock", "level"),
    [(None, None, "bubblewrap"), ("denied", None, "landlock"), ("denied", "old kernel", "none")],
)
def test_sandbox_ladder(monkeypatch, bubblewrap, landlock, level):
    monkeypatch.setattr(levels, "available_levels", lambda: {"bubblewrap": bubblewrap, "landlock": landlock})
    report = doctor.sandbox()
    assert report["level"] == level
    for reason in (bubblewrap, landlock):
        assert reason is None or reason in doctor._sandbox_line(report)


def test_command(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"]["count"] >= 1
