"""Whole runs with small and offloaded optimiser states over a mesh: the curve of one device, resumed bit for bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import MeshOptions
from prm_jax.prime.checks import check_options
from prm_jax.prime.plan_memory import make_workload, state_bytes
from prm_jax.prime.training import train
from tests.prime.conftest import replaced

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


def losses(path) -> np.ndarray:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    names = ("policy/loss", "policy/grad_norm", "prm/loss", "prm/grad_norm", "prm/reward_abs")
    return np.array([[record[name] for name in names] for record in records if "policy/loss" in record])


@pytest.mark.slow
def test_a_run_over_a_mesh_with_everything_offloaded(run_options, tmp_path):
    plain = replaced(
        run_options, sft={"steps": 4}, prm={"pretrain_rollouts": 0, "moments": "int8"}, policy={"moments": "bfloat16"},
        eval={"prm_problems": 2, "problems": 2},
    )  # fmt: skip
    plain = dataclasses.replace(plain, steps=3)
    given = replaced(plain, prm={"offload": True}, policy={"offload": True}, model={"offload_reference": True})
    given = dataclasses.replace(given, mesh=MeshOptions(data=1, fsdp=2, tensor=1))
    train(plain, tmp_path / "plain")
    train(given, tmp_path / "given")
    np.testing.assert_allclose(losses(tmp_path / "given"), losses(tmp_path / "plain"), rtol=2e-4, atol=1e-5)
    train(dataclasses.replace(given, steps=2), tmp_path / "resumed")
    train(given, tmp_path / "resumed", resume=True)
    np.testing.assert_array_equal(losses(tmp_path / "resumed"), losses(tmp_path / "given"))
    for name in ("policy", "prm"):
        files = [(tmp_path / run / name / "model.safetensors").read_bytes() for run in ("given", "resumed")]
        assert files[0] == files[1]


def test_a_reference_at_work_all_the_time_cannot_be_offloaded(run_options):
    for changes in ({"model": {"lora_rank": 2}}, {"prm": {"lora_rank": 2}}):
        model = {"offload_reference": True} | changes.get("model", {})
        options = replaced(run_options, **{**changes, "model": model})
        with pytest.raises(UserError, match=f"--model.offload-reference .*--{next(iter(changes))}.lora-rank"):
            check_options(options)


def test_what_the_plan_counts(run_options, tiny_config):
    config = dataclasses.replace(tiny_config, vocab_size=512, hidden_size=64, intermediate_size=128)
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"))

    def counted(**changes) -> dict[str, float]:
        return state_bytes(make_workload(replaced(run_options, **changes), config, None, mesh, "tpu"))

    full, halves = counted(), counted(policy={"moments": "bfloat16"}, prm={"moments": "int8"})
    parameters = full["policy parameters"]
    assert full["policy optimiser"] == pytest.approx(2 * parameters, rel=1e-3)
    assert halves["policy optimiser"] == pytest.approx(1.5 * parameters, rel=1e-3)
    assert halves["PRM optimiser"] < 0.6 * parameters  # a quarter, the scales of narrow rows, and small leaves whole
    away = counted(policy={"offload": True}, prm={"offload": True}, model={"offload_reference": True})
    assert set(away) == {"policy parameters", "PRM parameters"}
