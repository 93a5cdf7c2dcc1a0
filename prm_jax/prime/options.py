"""Options of ``prm-jax train``: plain frozen dataclasses, importing nothing heavy, and the presets.

Defaults are PRIME's published settings (arXiv 2502.01456, its released scripts) where the paper fixes them;
the presets change what a small machine needs changed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from prm_jax.config_io import OptionsOf
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.model_options import ModelOptions
from prm_jax.option_ranges import above, at_least, within


@dataclass(frozen=True)
class TaskOptions:
    """What is solved, and how an answer is judged."""

    name: str = "carry"
    """Task: carry, arithmetic, jsonl, gsm8k, or the name of a reasoning-gym dataset."""
    options: Annotated[dict[str, str], OptionsOf("name")] = field(default_factory=dict)
    """Options of that task as name value pairs, e.g. min_operands 3 max_operands 5; added to the preset's for the same
    task."""


@dataclass(frozen=True)
class SFTOptions:
    """Warm start: supervised fine-tuning on the task's demonstrations."""

    steps: Annotated[int, at_least(0)] = 0
    """Steps; 0: none."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Demonstrations a step."""
    learning_rate: Annotated[float, at_least(0)] = 5e-3
    """Peak learning rate; cosine to a tenth of it."""
    warmup_fraction: Annotated[float, within(0, 1)] = 0.05
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, within(0, 1, high_open=True)] = 0.95
    """AdamW's second moment decay."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Largest global norm of a gradient."""


@dataclass(frozen=True)
class RolloutOptions:
    """How solutions are sampled, and which prompts count."""

    prompts_per_step: Annotated[int, at_least(1)] = 256
    """Prompts a step, after filtering."""
    samples_per_prompt: Annotated[int, at_least(1)] = 4
    """Solutions a prompt (a group)."""
    max_new_tokens: Annotated[int, at_least(1)] = 3072
    """Longest response, in tokens."""
    max_prompt_tokens: Annotated[int, at_least(1)] = 1024
    """Longer prompts are left out and counted."""
    temperature: Annotated[float, above(0)] = 1.0
    """Sampling temperature; policy log-probs use it too, the PRM and the reference do not."""
    top_k: Annotated[int, at_least(0)] = 0
    """Sample among the k likeliest tokens; 0: all."""
    top_p: Annotated[float, within(0, 1)] = 1.0
    """Sample within this much probability mass."""
    filter: Literal["none", "mask", "oversample", "resample"] = "resample"
    """Prompts by their solve rate.  none: keep all; mask: failing groups stay in the batch but count for
    nothing; oversample: draw more, passing ones first, failing ones fill up; resample: sample until
    enough prompts pass."""
    solve_rate_low: Annotated[float, within(0, 1)] = 0.2
    """A prompt passes when its solve rate is at least this ..."""
    solve_rate_high: Annotated[float, within(0, 1)] = 0.8
    """... and at most this."""
    oversample_factor: Annotated[int, at_least(1)] = 4
    """Prompts drawn for one kept, with filter=oversample."""
    max_resample_rounds: Annotated[int, at_least(1)] = 8
    """Rounds of sampling after which filter=resample goes on with the groups that it has, the rest masked."""
    drop_truncated: bool = False
    """A group with a response that reached max_new_tokens fails the filter."""
    outcome_noise: Annotated[float, within(0, 0.5)] = 0.0
    """Share of outcomes turned round at random in training, to study verifiers that err."""


@dataclass(frozen=True)
class PRMOptions:
    """The implicit process reward model: beta * log(prm / reference), learned from outcomes alone."""

    path: str = ""
    """Start from these weights (a smaller model with the same tokenizer, say); empty: the policy's start."""
    lora_rank: Annotated[int, at_least(0)] = 0
    """Rank of the PRM's adapters on its frozen start; 0: all parameters train."""
    reference: Literal["frozen", "policy"] = "frozen"
    """The reference: the PRM's own frozen start, or the policy that sampled."""
    update: Literal["none", "after", "before", "reverse"] = "after"
    """When the PRM learns from a batch.  after: rewards come from the training pass itself; before: update,
    then score again; reverse: score whole groups first, then as after (for the detached losses); none:
    never."""
    loss: Literal["ce", "dpo", "detached", "detached_bon_rm", "detached_bon_acc"] = "ce"
    """Cross-entropy on the outcome, DPO over all right-wrong pairs of a group, or the released detached
    pair losses."""
    beta: Annotated[float, above(0)] = 0.05
    """Scale of the log-ratio."""
    learning_rate: Annotated[float, at_least(0)] = 1e-6
    """Constant after warm-up."""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """Optimiser steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: Annotated[float, above(0)] = 10.0
    """Largest global norm of a gradient."""
    minibatches: Annotated[int, at_least(1)] = 1
    """Optimiser steps that one pass over the batch is divided into (whole groups each)."""
    epochs: Annotated[int, at_least(1)] = 1
    """Passes over the batch."""
    microbatches: Annotated[int, at_least(1)] = 1
    """Pieces in which one optimiser step's gradient is accumulated (exactly)."""
    pretrain_rollouts: Annotated[int, at_least(0)] = 0
    """Rollouts of the initial policy from which the PRM learns, by outcomes alone, before the policy does."""
    pretrain_epochs: Annotated[int, at_least(1)] = 4
    """Passes over them."""
    pretrain_batch: Annotated[int, at_least(1)] = 128
    """Rollouts an optimiser step of that."""


@dataclass(frozen=True)
class AdvantageOptions:
    """From process rewards and outcomes to advantages."""

    estimator: Literal["rloo", "rloo_released", "grpo", "reinforce", "ppo"] = "rloo"
    """rloo: the paper's equation 5; rloo_released: the published code; grpo, reinforce: its equations 7 and
    8; ppo: GAE with a critic."""
    process: Literal["implicit", "checker"] = "implicit"
    """Where process rewards come from.  implicit: the online PRM; checker: the task's own step checker, -1 on the last
    token of the first wrong step: what a PRM without error would say, for tasks that know."""
    process_coef: Annotated[float, at_least(0)] = 1.0
    """Weight of the process rewards; 0 is outcome-only training, and then no PRM is kept at all."""
    outcome_coef: Annotated[float, at_least(0)] = 1.0
    """Weight of the outcome."""
    granularity: Literal["token", "step"] = "token"
    """A process reward at every token, or summed at the last token of every step."""
    normalizer: Literal["return", "none"] = "return"
    """Divide process rewards by the largest absolute return of the batch (published), or not (which can
    destroy a policy); grpo divides by the group's deviation instead."""
    gate: bool = False
    """Scale the process rewards by max(0, 2 * a - 1), a = the PRM's pairwise accuracy on these rollouts
    before it learns from them."""
    gate_z: Annotated[float, at_least(0)] = 0.0
    """Put the lower end of a's interval in its place, this many standard errors below, counting the mixed groups: a
    gate that few groups cannot open by luck; 0: a as it is."""
    include_last: bool = True
    """The response's last token gets a process reward, too."""
    discount: Annotated[float, within(0, 1)] = 1.0
    """Discount of process rewards."""
    gae_lambda: Annotated[float, within(0, 1)] = 1.0
    """Lambda of GAE (ppo)."""
    whiten: bool = True
    """Normalise advantages over the batch (rloo, ppo)."""


@dataclass(frozen=True)
class PolicyOptions:
    """The policy's loss and optimiser."""

    learning_rate: Annotated[float, at_least(0)] = 5e-7
    """Constant after warm-up."""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """Optimiser steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, at_least(0)] = 0.01
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, within(0, 1, high_open=True)] = 0.999
    """AdamW's second moment decay."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Largest global norm of a gradient."""
    clip_low: Annotated[float, within(0, 1)] = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, at_least(0)] = 0.2
    """... and above at 1 + clip_high."""
    dual_clip: Annotated[float | None, above(1)] = None
    """Bound of the loss for negative advantages, times the advantage; none: unbounded."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratios of tokens, or of whole responses (geometric mean)."""
    kl_coef: Annotated[float, at_least(0)] = 0.0
    """Weight of the divergence from the reference; 0: none."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence in the loss."""
    kl_placement: Literal["loss", "reward"] = "loss"
    """The divergence as a term of the loss, or as a penalty on every token's reward."""
    entropy_coef: Annotated[float, at_least(0)] = 0.0
    """Weight of the entropy bonus; 0: none."""
    minibatches: Annotated[int, at_least(1)] = 1
    """Optimiser steps that one pass over the batch is divided into (whole groups each)."""
    epochs: Annotated[int, at_least(1)] = 1
    """Passes over the batch."""
    microbatches: Annotated[int, at_least(1)] = 1
    """Pieces in which one optimiser step's gradient is accumulated (exactly)."""


@dataclass(frozen=True)
class CriticOptions:
    """The critic of estimator=ppo: a value head on a copy of the policy's start."""

    learning_rate: Annotated[float, at_least(0)] = 1e-5
    """Constant."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Largest global norm of a gradient."""
    clip: Annotated[float | None, at_least(0)] = 0.2
    """Values move at most this far from the old ones in one update; none: unbounded."""


@dataclass(frozen=True)
class EvalOptions:
    """Evaluation on problems that training never sees."""

    every: Annotated[int, at_least(0)] = 10
    """Steps between evaluations; 0: only before and after."""
    problems: Annotated[int, at_least(1)] = 512
    """Problems in one evaluation."""
    greedy: bool = True
    """Evaluate the likeliest response."""
    sampled: bool = True
    """Evaluate one sampled response a problem."""
    prm_problems: Annotated[int, at_least(0)] = 512
    """Responses of the initial policy on which the PRM is tested against exact step labels, one a problem;
    0: none. Twice as many problems are drawn: the first half only picks the threshold."""
    batch_size: Annotated[int, at_least(1)] = 256
    """Prompts generated for at once."""


@dataclass(frozen=True)
class TrainOptions:
    """Everything that defines a run; written into its directory as resolved."""

    task: TaskOptions = field(default_factory=TaskOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    sft: SFTOptions = field(default_factory=SFTOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    prm: PRMOptions = field(default_factory=PRMOptions)
    advantage: AdvantageOptions = field(default_factory=AdvantageOptions)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    critic: CriticOptions = field(default_factory=CriticOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    seed: Annotated[int, within(0, 2**32 - 1)] = 0
    """Seed of everything random."""
    steps: Annotated[int, at_least(0)] = 60
    """Training steps of the policy."""
    baseline: bool = False
    """Afterwards, the same from the same start with outcomes only, for comparison."""
    save_every: Annotated[int, at_least(1)] = 10
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Checkpoints kept."""
    sample_every: Annotated[int, at_least(1)] = 10
    """Steps between samples written as text with their step rewards."""
    max_bad_steps: Annotated[int, at_least(1)] = 3
    """Steps in a row with a non-finite gradient after which a run stops; each is skipped and counted."""
    max_empty_steps: Annotated[int, at_least(1)] = 20
    """Steps in a row without a prompt that passes the filter after which a run stops."""
    tensorboard: bool = False
    """Write TensorBoard events, too (extra tb)."""
    wandb: bool = False
    """Log to Weights & Biases, too (extra wandb)."""
    plots: bool = True
    """Draw plots at the end (extra plots)."""


def _tiny() -> TrainOptions:
    return TrainOptions(
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


def _tiny_long() -> TrainOptions:
    tiny = _tiny()
    return dataclasses.replace(
        tiny,
        task=TaskOptions("carry", {"min_operands": "11", "max_operands": "12", "num_eval": "1024"}),
        rollout=dataclasses.replace(tiny.rollout, max_new_tokens=104, max_prompt_tokens=32),
        policy=dataclasses.replace(tiny.policy, learning_rate=1e-4),
    )


def _smoke() -> TrainOptions:
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


def _smollm2() -> TrainOptions:
    return TrainOptions(
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


PRESETS = {"tiny": _tiny(), "tiny-long": _tiny_long(), "smoke": _smoke(), "smollm2": _smollm2()}
"""Named starting points: ``--preset NAME``; a configuration file and the command line change them further."""
