"""A model that knows nothing, and the careless policy in its place."""

import jax
import pytest

from prm_jax import models
from prm_jax.data.carry import ALPHABET
from tests.search.careless import Careless, stand_in


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    tokenizer = models.CharTokenizer(ALPHABET)
    config = models.ModelConfig(
        architecture="llama", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "hf"
    models.save_weights(path, config, models.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return str(path)


@pytest.fixture
def careless(monkeypatch):
    stand_in(monkeypatch, Careless())
