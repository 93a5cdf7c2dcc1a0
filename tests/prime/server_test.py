"""Training whose rollouts come from a server, against a stand-in for SGLang that runs the model."""

import dataclasses
import json

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import load_weights
from prm_jax.prime import train
from prm_jax.rollouts import Connection, ServerOptions
from tests.rollouts.token_servers import ModelSglang

pytestmark = pytest.mark.heavy


def on_server(options, url, folder, **server):
    rollout = dataclasses.replace(
        options.rollout, engine=url, server=ServerOptions(folder=str(folder), precision="float32", probe=4, **server)
    )
    return dataclasses.replace(
        options, rollout=rollout, connection=Connection(backoff=0.01, retries=1), baseline=False, steps=2,
        prm=dataclasses.replace(options.prm, pretrain_rollouts=0),
    )


def test_a_run_on_a_server(run_options, tmp_path):
    fake = ModelSglang()
    with fake.running() as url:
        result = train(on_server(run_options, url, tmp_path / "weights"), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "policy/loss" in record]
    assert len(steps) == 2
    assert all(record["rollout/server_difference"] < 1e-3 for record in steps)
    assert all(record["rollout/sampled"] == 16 for record in steps)
    # The server has the final policy: its evaluation came from there.
    _, policy = load_weights(result.policy)
    _, served = load_weights(tmp_path / "weights" / "current")
    np.testing.assert_array_equal(policy["embed"]["embedding"], served["embed"]["embedding"])
    assert int(fake.version) in (3, 4)  # the warm start, perhaps copied, and two steps
    assert "eval/greedy_accuracy" in result.after


def test_a_server_with_other_weights_stops_the_run(run_options, tmp_path):
    fake = ModelSglang()
    changes = fake.other

    def other(path, body):
        found = changes(path, body)
        fake.frozen = True  # from the second version on
        return found

    fake.other = other
    options = on_server(run_options, "", tmp_path / "weights")
    learning = dataclasses.replace(options.policy, learning_rate=0.1)
    with fake.running() as url, pytest.raises(UserError, match="the server has other weights"):
        rollout = dataclasses.replace(options.rollout, engine=url)
        train(dataclasses.replace(options, rollout=rollout, policy=learning), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "slot"}, "--rollout.engine 'slot' is unknown"),
        ({"engine": "http://localhost:1"}, "needs --rollout.server.folder"),
        ({"engine": "http://localhost:1", "server": ServerOptions(folder="x")}, "no server answers"),
        ({"max_lag": 1, "devices": 99}, "--rollout.devices 99 needs as many devices that do not train"),
    ],
)
def test_engines_that_cannot_be_used_are_found_before_the_warm_start(run_options, tmp_path, change, message):
    options = dataclasses.replace(run_options, rollout=dataclasses.replace(run_options.rollout, **change))
    with pytest.raises(UserError, match=message):
        train(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()
