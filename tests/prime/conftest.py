"""A model small enough to compile in a second, and rollouts of it."""

import dataclasses

import numpy as np
import pytest

from prm_jax.prime.options import (
    AdvantageOptions,
    EvalOptions,
    ModelOptions,
    PolicyOptions,
    PRMOptions,
    RolloutOptions,
    SFTOptions,
    TaskOptions,
    TrainOptions,
)
from prm_jax.prime.step import Frozen, PrimeBatch


@pytest.fixture(scope="session")
def tiny_frozen(tiny_params) -> Frozen:
    return Frozen(tiny_params, tiny_params)


def make_batch(seed: int = 0, prompts: int = 4, size: int = 4, width: int = 12, vocab: int = 18) -> PrimeBatch:
    """Random rows of 3 prompt tokens and 2 to 9 response tokens, two or three tokens a step; outcomes mixed."""
    rng = np.random.default_rng(seed)
    rows = prompts * size
    lengths = rng.integers(2, width - 2, size=rows)
    columns = np.arange(width)[None, :]
    mask = (columns >= 3) & (columns < 3 + lengths[:, None])
    outcome = rng.integers(0, 2, size=rows).astype(np.float32)
    outcome[::size], outcome[1::size] = 1.0, 0.0
    arrays = {
        "tokens": rng.integers(3, vocab, size=(rows, width)).astype(np.int32),
        "mask": mask,
        "keep": np.ones(rows, bool),
        "outcome": outcome,
        "group_ids": np.repeat(np.arange(prompts, dtype=np.int32), size),
        "step_ids": np.where(mask, (columns - 3) // 2, -1).astype(np.int32),
    }
    return PrimeBatch(**arrays)


@pytest.fixture
def batch() -> PrimeBatch:
    return make_batch()


@pytest.fixture(scope="session")
def options() -> TrainOptions:
    """Options of a step on `make_batch`'s shapes."""
    return TrainOptions(
        rollout=RolloutOptions(prompts_per_step=4, samples_per_prompt=4, max_prompt_tokens=3, max_new_tokens=9),
        prm=PRMOptions(learning_rate=1e-2),
        policy=PolicyOptions(learning_rate=1e-2, weight_decay=0.0),
        advantage=AdvantageOptions(),
    )


@pytest.fixture(scope="session")
def run_options() -> TrainOptions:
    """A whole run of a few seconds."""
    return TrainOptions(
        task=TaskOptions("carry", {"min_operands": "2", "max_operands": "2", "num_eval": "16"}),
        model=ModelOptions(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1),
        sft=SFTOptions(steps=30, batch_size=32, learning_rate=2e-2),
        rollout=RolloutOptions(
            prompts_per_step=4, samples_per_prompt=4, max_prompt_tokens=5, max_new_tokens=12, filter="none"
        ),
        prm=PRMOptions(learning_rate=1e-3, pretrain_rollouts=16, pretrain_batch=16, pretrain_epochs=1),
        policy=PolicyOptions(learning_rate=1e-3, weight_decay=0.0),
        eval=EvalOptions(every=0, problems=8, prm_problems=4, batch_size=8),
        steps=4,
        save_every=1,
        sample_every=2,
        plots=False,
    )


def replaced(options: TrainOptions, **groups: dict) -> TrainOptions:
    """`options` with fields of its groups replaced: ``replaced(options, prm={"loss": "dpo"})``."""
    return dataclasses.replace(
        options, **{name: dataclasses.replace(getattr(options, name), **fields) for name, fields in groups.items()}
    )
