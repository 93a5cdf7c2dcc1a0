"""A tiny model and tiny solutions: right steps are written with a, wrong ones with b."""

import jax
import numpy as np
import pytest

from prm_jax.data.step_data import StepRecord
from prm_jax.models import CharTokenizer, ModelConfig, init_params

ALPHABET = "abxyz0123456789+-=?: \n"


@pytest.fixture(scope="session")
def tokenizer() -> CharTokenizer:
    return CharTokenizer(ALPHABET)


@pytest.fixture(scope="session")
def config(tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip


@pytest.fixture(scope="session")
def params(config):
    return init_params(config, jax.random.key(3))


def make_records(count: int = 24, seed: int = 0, *, size: int = 4) -> list[StepRecord]:
    """Groups of `size` solutions of two or three steps; a step with b is wrong, and so is then the outcome.

    Each group has a right and a wrong solution; sibling steps share their prefix often, since texts are few.
    """
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        group, place = divmod(index, size)
        steps = int(rng.integers(2, 4))
        right = rng.random(steps) < 0.6
        if place == 0:
            right[:] = True
        elif place == 1:
            right[rng.integers(steps)] = False
        text = tuple(("a" if good else "b") + "xyz"[k] for k, good in enumerate(right))
        good = float(right.all())
        provenance = {"objectives": {"right": float(right.mean()), "short": float(-steps)}, "answer": str(int(good))}
        records.append(
            StepRecord(f"{group}?", text, tuple(map(float, right)), good, str(group), f"r{index}", provenance)
        )
    return records


@pytest.fixture(scope="session")
def records() -> list[StepRecord]:
    return make_records()


@pytest.fixture(scope="session")
def model_path(config, params, tokenizer, tmp_path_factory):
    """The tiny model as a directory."""
    from prm_jax.models import save_weights

    path = tmp_path_factory.mktemp("base") / "model"
    save_weights(path, config, params, tokenizer=tokenizer)
    return path


@pytest.fixture(scope="session")
def data_path(records, tmp_path_factory):
    """The tiny solutions as step data."""
    from prm_jax.data.step_data import write_step_data

    path = tmp_path_factory.mktemp("data") / "steps.jsonl"
    write_step_data(path, records)
    return path
