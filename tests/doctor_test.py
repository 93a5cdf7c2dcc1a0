"""The doctor's report."""

import json

import pytest

from prm_jax import cli, doctor


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
    assert report["sandbox"]["level"] in ("bwrap", "landlock", "none")
    text = doctor.render(report)
    assert "jax" in text and "sandbox" in text and "pip install 'prm-jax[tpu]'" in text


def test_failures_are_reported_and_not_raised(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "local_devices", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "_try_bwrap", lambda: "not installed")
    monkeypatch.setattr(doctor, "_landlock_abi", lambda: 0)
    monkeypatch.setattr(doctor, "_installed", lambda name: False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    report = doctor.inspect()
    assert "ZeroDivisionError" in report["devices"]["error"] and report["sandbox"]["level"] == "none"
    assert not any(state["present"] for state in report["extras"].values())
    text = doctor.render(report)
    assert "jax cannot start" in text and "install bubblewrap" in text and "JAX_COMPILATION_CACHE_DIR" in text


@pytest.mark.parametrize(
    ("bwrap", "abi", "level"), [("", 7, "bwrap"), ("denied", 7, "landlock"), ("denied", 0, "none")]
)
def test_sandbox_ladder(monkeypatch, bwrap, abi, level):
    monkeypatch.setattr(doctor, "_try_bwrap", lambda: bwrap)
    monkeypatch.setattr(doctor, "_landlock_abi", lambda: abi)
    assert doctor.sandbox()["level"] == level


def test_command(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"]["count"] >= 1
