"""Configurations of models that options name, with and without weights."""

import json

import jax
import pytest

from prm_jax.errors import UserError
from prm_jax.models import save_weights
from prm_jax.models.loading import fresh_config, read_config
from prm_jax.models.model_options import ModelOptions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config, tiny_params):
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_weights(path, tiny_config, jax.tree.map(lambda x: x.astype("bfloat16"), tiny_params))
    return path


def test_a_configuration_is_read_without_weights_and_gets_the_options(checkpoint, tiny_config):
    for weights in checkpoint.glob("*.safetensors*"):
        weights.unlink()
    options = ModelOptions(str(checkpoint), compute_dtype="bfloat16", remat="full", attention="blockwise")
    found = read_config(options)
    assert (found.dtype, found.compute_dtype, found.remat, found.attention) == (
        "bfloat16", "bfloat16", "full", "blockwise",
    )  # fmt: skip
    assert found.to_hf() | {"torch_dtype": ""} == tiny_config.to_hf() | {"torch_dtype": ""}
    assert read_config(ModelOptions(str(checkpoint / "config.json"))).dtype == "bfloat16"


def test_the_attention_option_reaches_a_fresh_model():
    assert fresh_config(ModelOptions(attention="blockwise"), 32).attention == "blockwise"


def test_an_adapter_has_the_configuration_of_its_base(checkpoint, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(checkpoint)}))
    assert read_config(ModelOptions(str(tmp_path))) == read_config(ModelOptions(str(checkpoint)))


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "config.json.*model_type"), ("{", "not valid JSON"), (None, "no config.json")]
)
def test_a_bad_configuration_is_refused_with_its_path(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        read_config(ModelOptions(str(tmp_path)))
    assert str(tmp_path) in str(refusal.value)


def test_a_path_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="no such file or directory"):
        read_config(ModelOptions("/nowhere"))
