"""Checks of a run's options before anything is loaded or compiled: every problem is named at once."""

from prm_jax.errors import UserError
from prm_jax.prime.options import TrainOptions


def check_options(options: TrainOptions) -> None:
    """Refuses options that cannot work.

    Raises:
      UserError: lists all problems found, each with the option, the value and what is expected.
    """
    problems = [
        *_positive(options),
        *_fractions(options),
        *_groups(options),
        *_divisions(options),
        *_combinations(options),
    ]
    if problems:
        raise UserError("these options cannot work:\n" + "\n".join(f"  - {text}" for text in problems))


def _positive(options: TrainOptions) -> list[str]:
    rollout, prm, policy = options.rollout, options.prm, options.policy
    at_least_one = {
        "rollout.prompts-per-step": rollout.prompts_per_step,
        "rollout.samples-per-prompt": rollout.samples_per_prompt,
        "rollout.max-new-tokens": rollout.max_new_tokens,
        "rollout.max-prompt-tokens": rollout.max_prompt_tokens,
        "rollout.oversample-factor": rollout.oversample_factor,
        "rollout.max-resample-rounds": rollout.max_resample_rounds,
        "prm.minibatches": prm.minibatches,
        "prm.epochs": prm.epochs,
        "prm.microbatches": prm.microbatches,
        "prm.pretrain-epochs": prm.pretrain_epochs,
        "prm.pretrain-batch": prm.pretrain_batch,
        "policy.minibatches": policy.minibatches,
        "model.hidden-size": options.model.hidden_size,
        "model.num-layers": options.model.num_layers,
        "model.num-heads": options.model.num_heads,
        "model.num-kv-heads": options.model.num_kv_heads,
        "policy.epochs": policy.epochs,
        "policy.microbatches": policy.microbatches,
        "eval.problems": options.eval.problems,
        "eval.batch-size": options.eval.batch_size,
        "sft.batch-size": options.sft.batch_size,
        "save-every": options.save_every,
        "sample-every": options.sample_every,
        "keep-checkpoints": options.keep_checkpoints,
        "max-bad-steps": options.max_bad_steps,
        "max-empty-steps": options.max_empty_steps,
    }
    not_negative = {
        "steps": options.steps,
        "sft.steps": options.sft.steps,
        "eval.every": options.eval.every,
        "eval.prm-problems": options.eval.prm_problems,
        "prm.pretrain-rollouts": prm.pretrain_rollouts,
        "model.lora-rank": options.model.lora_rank,
        "prm.lora-rank": prm.lora_rank,
        "policy.kl-coef": policy.kl_coef,
        "policy.learning-rate": policy.learning_rate,
        "prm.learning-rate": prm.learning_rate,
        "rollout.top-k": rollout.top_k,
        "policy.warmup-steps": policy.warmup_steps,
        "prm.warmup-steps": prm.warmup_steps,
        "policy.weight-decay": policy.weight_decay,
        "prm.weight-decay": prm.weight_decay,
        "sft.weight-decay": options.sft.weight_decay,
        "sft.learning-rate": options.sft.learning_rate,
        "critic.learning-rate": options.critic.learning_rate,
        "policy.clip-high": policy.clip_high,
        "policy.entropy-coef": policy.entropy_coef,
        "advantage.process-coef": options.advantage.process_coef,
        "advantage.gate-z": options.advantage.gate_z,
        "advantage.outcome-coef": options.advantage.outcome_coef,
        "seed": options.seed,
    }
    above_zero = {
        "rollout.temperature": rollout.temperature,
        "prm.beta": prm.beta,
        "policy.grad-clip": policy.grad_clip,
        "prm.grad-clip": prm.grad_clip,
        "critic.grad-clip": options.critic.grad_clip,
        "sft.grad-clip": options.sft.grad_clip,
    }
    return [
        *(f"--{name} is {value}; it must be at least 1" for name, value in at_least_one.items() if not value >= 1),
        *(f"--{name} is {value}; it must not be negative" for name, value in not_negative.items() if not value >= 0),
        *(f"--{name} is {value}; it must be greater than 0" for name, value in above_zero.items() if not value > 0),
    ]


def _fractions(options: TrainOptions) -> list[str]:
    rollout = options.rollout
    found = []
    if not 0 <= rollout.solve_rate_low <= rollout.solve_rate_high <= 1:
        found.append(
            f"--rollout.solve-rate-low {rollout.solve_rate_low} and --rollout.solve-rate-high "
            f"{rollout.solve_rate_high} must satisfy 0 <= low <= high <= 1"
        )
    shares = {
        "rollout.top-p": (rollout.top_p, 0.0, 1.0),
        "rollout.outcome-noise": (rollout.outcome_noise, 0.0, 0.5),
        "advantage.discount": (options.advantage.discount, 0.0, 1.0),
        "advantage.gae-lambda": (options.advantage.gae_lambda, 0.0, 1.0),
        "sft.warmup-fraction": (options.sft.warmup_fraction, 0.0, 1.0),
        "policy.clip-low": (options.policy.clip_low, 0.0, 1.0),
        "policy.beta2": (options.policy.beta2, 0.0, 0.999999),
        "sft.beta2": (options.sft.beta2, 0.0, 0.999999),
    }
    for name, (value, low, high) in shares.items():
        if not low <= value <= high:
            found.append(f"--{name} is {value}; it must be within [{low:g}, {high:g}]")
    return found


def _groups(options: TrainOptions) -> list[str]:
    rollout, found = options.rollout, []
    size = rollout.samples_per_prompt
    if size == 1 and options.advantage.estimator in ("rloo", "rloo_released", "grpo"):
        found.append(
            f"--advantage.estimator {options.advantage.estimator} compares the samples of a prompt, but "
            "--rollout.samples-per-prompt is 1: sample at least 2, or use reinforce or ppo"
        )
    if size == 1 and options.advantage.gate:
        found.append("--advantage.gate compares the samples of a prompt: --rollout.samples-per-prompt must be >= 2")
    if size == 1 and rollout.filter != "none":
        found.append(
            "--rollout.filter needs solve rates between 0 and 1, which a single sample never has: "
            "--rollout.samples-per-prompt must be >= 2, or --rollout.filter none"
        )
    if options.prm.loss != "ce" and size == 1:
        found.append(f"--prm.loss {options.prm.loss} compares the samples of a prompt: sample at least 2")
    return found


def _divisions(options: TrainOptions) -> list[str]:
    prompts, size = options.rollout.prompts_per_step, options.rollout.samples_per_prompt
    found = []
    for name, part in (("prm", options.prm), ("policy", options.policy)):
        if prompts % part.minibatches:
            found.append(
                f"--{name}.minibatches {part.minibatches} must divide --rollout.prompts-per-step {prompts}: "
                "a minibatch holds whole groups"
            )
            continue
        pairs = name == "prm" and options.prm.loss != "ce"
        unit, what = (prompts, "prompts") if pairs else (prompts * size, "responses")
        if (unit // part.minibatches) % part.microbatches:
            found.append(
                f"--{name}.microbatches {part.microbatches} must divide the {unit // part.minibatches} {what} "
                f"of a minibatch ({prompts} prompts x {size} samples / {part.minibatches} minibatches)"
            )
    pretrain = max(1, options.prm.pretrain_batch // size) * size if size > 0 else 0
    if options.prm.pretrain_rollouts and pretrain % max(1, options.prm.microbatches):
        found.append(
            f"--prm.microbatches {options.prm.microbatches} must divide the {pretrain} responses of a warm-up batch "
            "(--prm.pretrain-batch, whole groups)"
        )
    if 0 < options.prm.pretrain_rollouts < options.prm.pretrain_batch:
        found.append(
            f"--prm.pretrain-batch {options.prm.pretrain_batch} is larger than "
            f"--prm.pretrain-rollouts {options.prm.pretrain_rollouts}"
        )
    return found


def _combinations(options: TrainOptions) -> list[str]:
    found = []
    advantage, prm, policy = options.advantage, options.prm, options.policy
    if advantage.process_coef == 0 and advantage.outcome_coef == 0:
        found.append("--advantage.process-coef and --advantage.outcome-coef are both 0: nothing would be learned")
    if advantage.process == "checker" and advantage.gate:
        found.append("--advantage.gate measures a PRM, and with --advantage.process checker there is none")
    if prm.reference == "policy" and prm.path:
        found.append(
            "--prm.reference policy compares the PRM with the policy, so that both must start from the same "
            "weights; leave --prm.path out or use --prm.reference frozen"
        )
    useless = prm.update == "none" and prm.reference == "frozen" and not prm.pretrain_rollouts
    if useless and advantage.process_coef and advantage.process == "implicit":
        found.append(
            "--prm.update none with a frozen reference never moves the PRM away from it, so that all process rewards "
            "are 0: warm it up with --prm.pretrain-rollouts, or choose another update"
        )
    if policy.kl_coef and policy.kl_placement == "loss" and policy.kl_estimator == "k1":
        found.append(
            "--policy.kl-estimator k1 has a gradient of mean zero as a loss: choose k2 or k3, or "
            "--policy.kl-placement reward"
        )
    if policy.dual_clip is not None and policy.dual_clip <= 1:
        found.append(f"--policy.dual-clip is {policy.dual_clip}; it must be greater than 1")
    if options.sft.steps and options.model.path:
        found.append("--sft.steps warms a fresh model up; with --model.path it must be 0")
    return found
