"""Quantised parameters in files: the same bits again, and what is refused."""

import json

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, init_params, load_weights, make_mesh, quantize, save_weights
from prm_jax.models.loading import read_config
from prm_jax.models.model_options import ModelOptions
from prm_jax.models.quantization import quantize_as
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.runs.checkpoint import Checkpointer

CONFIG = ModelConfig(
    vocab_size=20, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    quantized = quantize(CONFIG, params, bits=4, group=8, rank=1, transform="hadamard", embeddings=True)
    path = tmp_path_factory.mktemp("saved") / "model"
    save_weights(path, CONFIG, quantized)
    return path, quantized


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one).view(np.uint8), np.asarray(other).view(np.uint8))


def test_saved_and_loaded_are_the_same_bits(saved):
    path, quantized = saved
    config, found = load_weights(path)
    assert config == CONFIG
    assert_same_bits(found, quantized)
    assert read_config(ModelOptions(path=str(path), scan_unroll=1)) == CONFIG  # what a plan reads


@pytest.mark.parametrize("form", [
    {"bits": 8}, {"bits": 4, "group": 8, "scheme": "progressive"}, {"bits": 2, "group": 8, "scheme": "balanced"},
], ids=str)  # fmt: skip
def test_every_form_is_kept(params, form, tmp_path):
    quantized = quantize(CONFIG, params, **form)
    save_weights(tmp_path / "model", CONFIG, quantized)
    assert_same_bits(load_weights(tmp_path / "model")[1], quantized)


def test_loading_onto_a_mesh(saved):
    path, quantized = saved
    mesh = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    found = load_weights(path, mesh=mesh)[1]
    values = found["layers"]["mlp"]["up"]["kernel"].values
    assert values.sharding.shard_shape(values.shape) == (2, 4, 32)
    assert_same_bits(found, quantized)


def test_checkpoints_keep_the_bits(saved, tmp_path):
    _, quantized = saved
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, quantized, wait=True)
        restored = checkpoints.restore(quantized)
    assert restored is not None
    assert_same_bits(restored.state, quantized)


def test_other_options_than_those_of_the_checkpoint_are_refused(saved):
    _, found = saved
    same = QuantizationOptions(group=8, rank=1, transform="hadamard", embeddings=True)
    assert quantize_as(CONFIG, found, "int4", same) is found
    with pytest.raises(UserError, match="quantize int8: .*int4, groups of 8, rank 1, hadamard, .* for int8, o"):
        quantize_as(CONFIG, found, "int8", QuantizationOptions())
    with pytest.raises(UserError, match="ask for int4, one scale per output, asymmetric"):
        quantize_as(CONFIG, found, "int4", QuantizationOptions(group=16, scheme="asymmetric"))


def test_damaged_directories_are_refused(saved, tmp_path):
    path, _ = saved
    for change, message in (
        ({"format": 99}, "has format 99; this version reads format 1"),
        ({"matrices": {}}, r"embed.embedding should have shape \[20, 16\], found None"),
    ):
        copy = tmp_path / message[:10]
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"] |= change
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            load_weights(copy)
    with pytest.raises(UserError, match="saved as they are"):
        save_weights(tmp_path / "model", CONFIG, saved[1], dtype="bfloat16")
