"""Training over a mesh of devices: the same losses and the same model as on one device, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.sharding import make_mesh, shardings_for
from prm_jax.prm.data import make_plan
from prm_jax.prm.forward import init_head
from prm_jax.prm.kinds import Implicit, Token, Value
from prm_jax.prm.model import load, save
from prm_jax.prm.reward_model_options import BaseOptions, DataOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import build_rows
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec, Weights
from prm_jax.prm.train_options import TrainPRMOptions
from prm_jax.prm.training import train

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


@pytest.fixture(scope="module")
def options(model_path, data_path) -> TrainPRMOptions:
    return TrainPRMOptions(
        data=DataOptions(path=str(data_path), eval_fraction=0.0),
        text=TextLayout(separator=" "),
        model=BaseOptions(path=str(model_path)),
        train=OptimizerOptions(learning_rate=1e-2, batch_size=16, microbatches=2),
        plots=False,
    )


def losses(path) -> list[float]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line["prm/loss"] for line in lines if "prm/loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rank", "share", "sizes"),
    [
        (Token(head_layers=2), 0, 0.0, {"fsdp": 2, "tensor": 2}),
        (Implicit(reference="base"), 2, 0.3, {"data": 4, "fsdp": 2}),
    ],
)
def test_a_mesh_gives_the_losses_of_one_device(kind, rank, share, sizes, options, tmp_path, records):
    options = dataclasses.replace(
        options, prm=kind, model=dataclasses.replace(options.model, lora_rank=rank),
        data=dataclasses.replace(options.data, eval_fraction=share),
        train=dataclasses.replace(options.train, moments="float32" if rank else "bfloat16"),
    )  # fmt: skip
    alone = train(options, tmp_path / "one")
    offloaded = dataclasses.replace(options.train, offload=True)
    spread = dataclasses.replace(options, mesh=MeshOptions(**sizes), train=offloaded)
    over = train(spread, tmp_path / "mesh")
    assert len(losses(tmp_path / "one")) == alone["steps"] >= 1
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "one"), rtol=1e-4)
    for name, value in alone["after"].items():
        np.testing.assert_allclose(over["after"][name], value, rtol=2e-3, atol=2e-3, err_msg=name)
    if share:  # the state of the last checkpoint finds its places on the mesh again
        again = train(spread, tmp_path / "mesh", resume=True)
        assert again["after"] == over["after"]
    one, mesh = (score_solutions(load(tmp_path / n / "model"), records[:4]) for n in ("one", "mesh"))
    for a, b in zip(one, mesh, strict=True):
        np.testing.assert_allclose(a.steps, b.steps, atol=2e-3)


def test_batches_are_padded_to_what_the_mesh_divides(tokenizer, records):
    rows, _ = build_rows(records, tokenizer, TextLayout(), max_length=64)
    whole, split = (make_plan(rows, batch_size=16, ways=ways) for ways in (1, 8))
    assert split.epochs == whole.epochs
    assert split.shape.rows == -(-whole.shape.rows // 8) * 8 and split.shape.solutions % 8 == 0


def test_what_cannot_be_split_is_refused(options, tmp_path):
    with pytest.raises(UserError, match="8 solutions .* cannot be split over 3 devices"):
        train(dataclasses.replace(options, mesh=MeshOptions(data=3)), tmp_path / "run")
    with pytest.raises(UserError, match="needs 16 devices; there are 8"):
        train(dataclasses.replace(options, mesh=MeshOptions(data=4, fsdp=4)), tmp_path / "run")


@pytest.mark.parametrize("kind", [Implicit(), Value(value="ensemble", head_layers=2)])
def test_scores_over_a_mesh_are_those_of_one_device(kind, config, params, tokenizer, records, tmp_path):
    spec = Spec(kind, config)
    implicit = isinstance(kind, Implicit)
    head = {} if implicit else init_head(spec, jax.random.key(1), num_outputs=4, random=True)
    reference = jax.tree.map(lambda x: 1.1 * x, params) if implicit else None
    prm = PRM(spec, Weights(params, head, {}, reference), tokenizer, TextLayout(separator=" "))
    alone = score_solutions(prm, records[:9], max_tokens=96)
    save(tmp_path / "prm", prm)
    mesh = make_mesh(2, 2, 2)
    spread = load(tmp_path / "prm", mesh=mesh)
    assert jax.tree.map(lambda x: x.sharding, spread.weights) == shardings_for(spread.weights, mesh)
    over = score_solutions(spread, records[:9], max_tokens=96)
    for one, two in zip(alone, over, strict=True):
        assert one.record == two.record and np.abs(one.steps).max() > 0
        np.testing.assert_allclose(one.steps, two.steps, rtol=2e-4, atol=1e-6)
