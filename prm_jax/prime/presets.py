"""Named starting points of ``prm-jax train``: options for a small machine, a test, a pretrained model."""

import dataclasses

from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.model_options import ModelOptions
from prm_jax.prime.options import (
    AdvantageOptions,
    EvalOptions,
    Options,
    PolicyOptions,
    PRMOptions,
    RolloutOptions,
    SFTOptions,
    TaskOptions,
)


def _tiny() -> Options:
    return Options(
        task=TaskOptions("carry", {"min_operands": "3", "max_operands": "5", "num_eval": "1024"}),
        sft=SFTOptions(steps=700),
        rollout=RolloutOptions(
            prompts_per_step=32,
            samples_per_prompt=8,
            max_new_tokens=36,
            max_prompt_tokens=12,
            filter="mask",
            solve_rate_low=0.05,
            solve_rate_high=0.95,
        ),
        prm=PRMOptions(learning_rate=1e-3, pretrain_rollouts=2048),
        advantage=AdvantageOptions(gate=True),
        policy=PolicyOptions(learning_rate=3e-4, warmup_steps=10, weight_decay=0.0, beta2=0.95),
        steps=60,
        baseline=True,
    )


def _tiny_long() -> Options:
    tiny = _tiny()
    return dataclasses.replace(
        tiny,
        task=TaskOptions("carry", {"min_operands": "11", "max_operands": "12", "num_eval": "1024"}),
        rollout=dataclasses.replace(tiny.rollout, max_new_tokens=104, max_prompt_tokens=32),
        advantage=dataclasses.replace(tiny.advantage, gate_z=1.0),  # few groups are mixed: experiments/prime_tiny
        policy=dataclasses.replace(tiny.policy, learning_rate=1e-4),
    )


def _smoke() -> Options:
    tiny = _tiny()
    return dataclasses.replace(
        tiny,
        task=TaskOptions("carry", {"min_operands": "2", "max_operands": "3", "num_eval": "64"}),
        model=dataclasses.replace(tiny.model, hidden_size=32, intermediate_size=64, num_layers=2),
        sft=dataclasses.replace(tiny.sft, steps=40),
        rollout=dataclasses.replace(
            tiny.rollout, prompts_per_step=8, samples_per_prompt=4, max_new_tokens=20, max_prompt_tokens=8
        ),
        prm=dataclasses.replace(tiny.prm, pretrain_rollouts=64, pretrain_batch=32, pretrain_epochs=1),
        eval=EvalOptions(every=2, problems=32, prm_problems=16, batch_size=32),
        steps=4,
        save_every=1,
        sample_every=2,
    )


def _programs() -> Options:
    """Programs of a few statements, judged in the sandbox."""
    tiny = _tiny()
    return dataclasses.replace(
        tiny,
        task=TaskOptions(
            "programs",
            {"min_operations": "3", "max_operations": "4", "reversals": "0.5", "careless": "0.7", "num_eval": "256"},
        ),
        sft=SFTOptions(steps=200),
        rollout=dataclasses.replace(tiny.rollout, prompts_per_step=16, max_new_tokens=36, max_prompt_tokens=16),
        prm=dataclasses.replace(tiny.prm, pretrain_rollouts=512),
        eval=EvalOptions(every=10, problems=128, prm_problems=128, batch_size=256),
    )


def _smollm2() -> Options:
    return Options(
        task=TaskOptions("arithmetic", {"operation": "add", "digits": "2", "terms": "2", "shots": "2"}),
        model=ModelOptions(path="smollm2", lora_rank=16, lora_alpha=32.0),
        rollout=RolloutOptions(
            prompts_per_step=6,
            samples_per_prompt=8,
            max_new_tokens=8,
            max_prompt_tokens=32,
            filter="mask",
            solve_rate_low=0.05,
            solve_rate_high=0.95,
        ),
        prm=PRMOptions(lora_rank=16, learning_rate=1e-4, microbatches=2),
        advantage=AdvantageOptions(gate=True),
        policy=PolicyOptions(learning_rate=1e-4, warmup_steps=3, weight_decay=0.0, beta2=0.95, microbatches=2),
        eval=EvalOptions(every=10, problems=128, prm_problems=0, batch_size=32),
        steps=40,
    )


def _math() -> Options:
    """PRIME's published settings (arXiv 2502.01456 and its released scripts); --model.path is the user's.

    256 prompts x 4 samples, minibatches of 256 responses, 1,024 + 3,072 tokens, 592 steps. Pieces of four rows per
    device send the parameters less often than single rows, and fit.
    """
    return Options(
        task=TaskOptions("gsm8k"),
        model=ModelOptions(compute_dtype="bfloat16", remat="full", attention="auto"),
        prm=PRMOptions(minibatches=4, microbatch_tokens=16_384),
        policy=PolicyOptions(minibatches=4, microbatch_tokens=16_384),
        eval=EvalOptions(every=16, problems=500, prm_problems=0),
        mesh=MeshOptions(fsdp=-1),
        steps=592,
    )


def _math_lora() -> Options:
    """The same with adapters on one frozen base, which policy, PRM and reference share.

    Learning rates are ten times those of full training, as is usual for adapters.
    """
    full = _math()
    return dataclasses.replace(
        full,
        model=dataclasses.replace(full.model, lora_rank=16, lora_alpha=32.0),
        prm=dataclasses.replace(full.prm, lora_rank=16, learning_rate=1e-5),
        policy=dataclasses.replace(full.policy, learning_rate=5e-6),
    )


PRESETS = {
    "tiny": _tiny(),
    "tiny-long": _tiny_long(),
    "smoke": _smoke(),
    "programs": _programs(),
    "smollm2": _smollm2(),
    "qwen2.5-1.5b-math": _math(),
    "qwen2.5-1.5b-math-lora": _math_lora(),
    "qwen2.5-7b-math": _math(),
    "qwen2.5-7b-math-lora": _math_lora(),
}
"""Name -> options: ``--preset NAME``; a configuration file and the command line change them further."""
