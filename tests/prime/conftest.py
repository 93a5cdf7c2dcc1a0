"""A model small enough to compile in a second, and rollouts of it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import LoRAConfig
from prm_jax.prime.advantages import make_advantage
from prm_jax.prime.batch import Batch, Frozen, RewardInputs
from prm_jax.prime.critic import Critic
from prm_jax.prime.options import (
    AdvantageOptions,
    EvalOptions,
    ModelOptions,
    Options,
    PolicyOptions,
    PRMOptions,
    RolloutOptions,
    SFTOptions,
    TaskOptions,
)
from prm_jax.prime.policy import PolicyPhase, make_policy_loss
from prm_jax.prime.shaping import make_reward
from prm_jax.prime.sources import ImplicitPRM
from prm_jax.prime.step import Setup
from prm_jax.runs.learner import Learner, make_optimizer


@pytest.fixture(scope="session")
def tiny_frozen(tiny_params) -> Frozen:
    return Frozen(tiny_params, tiny_params)


def make_batch(seed: int = 0, prompts: int = 4, size: int = 4, width: int = 12, vocab: int = 18) -> Batch:
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
    return Batch(**arrays)


@pytest.fixture
def batch() -> Batch:
    return make_batch()


@pytest.fixture(scope="session")
def options() -> Options:
    """Options of a step on `make_batch`'s shapes."""
    return Options(
        rollout=RolloutOptions(prompts_per_step=4, samples_per_prompt=4, max_prompt_tokens=3, max_new_tokens=9),
        prm=PRMOptions(learning_rate=1e-2),
        policy=PolicyOptions(learning_rate=1e-2, weight_decay=0.0),
        advantage=AdvantageOptions(),
    )


@pytest.fixture(scope="session")
def run_options() -> Options:
    """A whole run of a few seconds."""
    return Options(
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


def replaced(options: Options, **groups: dict) -> Options:
    """`options` with fields of its groups replaced: ``replaced(options, prm={"loss": "dpo"})``."""
    return dataclasses.replace(
        options, **{name: dataclasses.replace(getattr(options, name), **fields) for name, fields in groups.items()}
    )


def setup_of(options: Options, config, params, *, lora: bool = False, source="implicit", ways: int = 1) -> Setup:
    """The step of some options on a tiny model; `source` None, "implicit", or an object."""
    adapters = LoRAConfig(rank=2, alpha=16.0) if lora else None
    learner = Learner(config, make_optimizer(options.policy.learning_rate), adapters)
    policy = PolicyPhase(
        learner, options.policy, make_policy_loss(options.policy), options.rollout.temperature, ways
    )
    if not options.advantage.process_coef:
        source = None
    elif source == "implicit":
        optimizer = make_optimizer(options.prm.learning_rate, grad_clip=10.0)
        source = ImplicitPRM(
            Learner(config, optimizer, adapters), params, options.prm, policy_config=config, ways=ways, columns=12
        )
    critic = None
    if options.advantage.estimator == "ppo":
        critic = Critic(Learner(config, make_optimizer(1e-2), adapters), options.critic, options.policy, ways)
    return Setup(
        policy, source, critic, make_reward(options.reward), make_advantage(options.advantage), options.advantage
    )


def inputs_of(batch: Batch, process, **fields) -> RewardInputs:
    """Inputs of reward and advantage functions, with what a step would fill in."""
    given = {
        "logp": None, "ref_logp": None, "gate": jnp.ones(()), "initial_value": jnp.zeros(len(batch.outcome)), **fields,
    }  # fmt: skip
    return RewardInputs(
        tokens=jnp.asarray(batch.tokens), mask=jnp.asarray(batch.mask), keep=jnp.asarray(batch.keep),
        step_ids=jnp.asarray(batch.step_ids), outcome=jnp.asarray(batch.outcome),
        group_ids=jnp.asarray(batch.group_ids), process=jnp.asarray(process), **given,
    )  # fmt: skip


def advantages_of(options: AdvantageOptions, batch: Batch, process, **fields):
    """Advantages [B, T] of some options, without a model."""
    inputs = inputs_of(batch, process, **fields)
    advantages = make_advantage(options)(inputs.process, inputs)
    return jnp.where(inputs.counted, advantages, 0.0)
