"""PRIME with several processes: the curve of one process, one run directory, and a restore on any number of them."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from prm_jax import config_io, prime
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.runs.checkpoint import Checkpointer
from prm_jax.runs.metrics_log import read_metrics
from tests.prime.conftest import replaced
from tests.several import run_together

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def options(run_options) -> prime.Options:
    """Two steps on eight devices, outcomes differ by noise; groups in turns stream through slots and the filter."""
    rollout = {
        "outcome_noise": 0.4, "engine": "slots", "filter": "resample", "solve_rate_low": 0.3, "solve_rate_high": 0.7,
        "max_prompt_tokens": 8,
    }  # fmt: skip
    task = {"name": "lookup", "options": {"entities": "4", "relations": "2", "hops": "1", "num_eval": "8"}}
    small = replaced(
        run_options, task=task, sft={"steps": 2, "batch_size": 8}, rollout=rollout,
        policy={"learning_rate": 1e-2},
        eval={"problems": 7, "prm_problems": 2, "every": 1},
    )  # fmt: skip
    return dataclasses.replace(small, steps=2, mesh=MeshOptions(data=2, fsdp=4))


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> pathlib.Path:
    """The run of one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    prime.train(options, path)
    return path


def together(options, path, count, *words, **more):
    """The same run by several processes, which share eight devices."""
    file = path.with_suffix(".yaml")
    file.write_text(config_io.to_yaml(options))
    command = ["-m", "prm_jax", "train", "--config", str(file), "--run-dir", str(path), *words]
    return run_together([command] * count, devices=8 // count, seconds=500, **more)


def check_equal(found: pathlib.Path, expected: pathlib.Path) -> None:
    """The same curves within 1e-5, the same whole numbers, and the same samples."""
    for phase in (".", "phases/warm_start", "phases/prm_warm_up"):
        ours, theirs = read_metrics(found / phase), read_metrics(expected / phase)
        assert [record.keys() for record in ours] == [record.keys() for record in theirs]
        for one, other in zip(ours, theirs, strict=True):
            own = ("seconds", "rollout/utilisation")  # the latter depends on how many slots there are
            names = [name for name in one if not name.startswith("time/") and name not in own]
            np.testing.assert_allclose(
                [one[name] for name in names], [other[name] for name in names], rtol=1e-5, atol=1e-5, err_msg=phase
            )
    ours, theirs = ([json.loads(line) for line in (path / "samples.jsonl").open()] for path in (found, expected))
    assert [sample["response"] for sample in ours] == [sample["response"] for sample in theirs]


def check_one_directory(path: pathlib.Path, like: pathlib.Path, steps: int) -> None:
    """What one process leaves, with whole arrays in the checkpoint."""
    assert {entry.name for entry in path.iterdir()} == {entry.name for entry in like.iterdir()}
    assert len(json.loads((path / "run.json").read_text())["launches"]) == 1
    with Checkpointer(path / "checkpoints", read_only=True) as ours:
        assert ours.latest_step() == steps


@pytest.fixture(scope="module")
def pair(options, tmp_path_factory) -> pathlib.Path:
    """The run of two processes."""
    path = tmp_path_factory.mktemp("pair") / "run"
    first, second = together(options, path, 2)
    assert first.code == 0 and second.code == 0, first.err[-3000:] + second.err[-3000:]
    assert "greedy accuracy" in first.out and second.out == ""
    return path


def test_two_processes_train_as_one(pair, alone):
    check_equal(pair, alone)
    check_one_directory(pair, alone, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four processes' worth of imports and compilations on few cores
def test_checkpoints_of_two_processes_and_of_one_continue_on_another_number(options, pair, alone):
    longer = dataclasses.replace(options, steps=3)
    ended = together(longer, alone, 4, "--resume")
    assert [one.code for one in ended] == [0] * 4, ended[0].err[-3000:]
    prime.train(dataclasses.replace(longer, mesh=MeshOptions(data=4)), pair, resume=True)  # one, with four devices
    check_equal(pair, alone)


def test_processes_that_disagree_all_end_with_the_difference(options, tmp_path):
    commands = []
    for seed in (0, 1):
        file = tmp_path / f"{seed}.yaml"
        file.write_text(config_io.to_yaml(dataclasses.replace(options, seed=seed)))
        commands.append(["-m", "prm_jax", "train", "--config", str(file), "--run-dir", str(tmp_path / "run")])
    ended = run_together(commands, devices=4, seconds=120)
    for one in ended:
        assert one.code == 2 and "  training.seed: 0 in process 0, 1 in process 1\n" in one.err, one.err
    assert not (tmp_path / "run").exists()
