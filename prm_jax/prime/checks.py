"""Checks of a run's options before anything is loaded or compiled: every problem is named at once."""

import re

from prm_jax.errors import UserError
from prm_jax.models.quantization_options import bits_of
from prm_jax.option_ranges import check_ranges
from prm_jax.prime.options import LABEL_READINGS, Options, PRMOptions
from prm_jax.prime.sample_losses import NAMES as SAMPLE_LOSSES
from prm_jax.prime.sizes import chunk_rows
from prm_jax.resolve import nearest
from prm_jax.rollouts.server_options import is_url

POLICY_METRICS = ("accuracy", "step_accuracy", "length", "finished")
"""What an evaluation measures of a policy, see `evaluate.policy_metrics`."""


def check_options(options: Options) -> None:
    """Refuses options that cannot work.

    Raises:
      UserError: lists all problems found, each with the option, the value and what is expected.
    """
    problems = [
        *check_ranges(options),
        *_groups(options),
        *_divisions(options),
        *_layout(options),
        *_combinations(options),
        *_rewards(options),
        *_online_prm(options),
        *_pattern(options),
        *_engine(options),
    ]
    if problems:
        raise UserError("these options cannot work:\n" + "\n".join(f"  - {text}" for text in problems))


def _groups(options: Options) -> list[str]:
    rollout, found = options.rollout, []
    size = rollout.samples_per_prompt
    if rollout.solve_rate_low > rollout.solve_rate_high:
        found.append(
            f"--rollout.solve-rate-low {rollout.solve_rate_low} is greater than --rollout.solve-rate-high "
            f"{rollout.solve_rate_high}"
        )
    if size == 1 and options.advantage.estimator in ("rloo", "rloo_released", "grpo", "lambda_grpo"):
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
    if size == 1 and options.policy.loss in SAMPLE_LOSSES:
        found.append(f"--policy.loss {options.policy.loss} compares the samples of a prompt: sample at least 2")
    if options.prm.loss != "ce" and size == 1:
        found.append(f"--prm.loss {options.prm.loss} compares the samples of a prompt: sample at least 2")
    return found


def _divisions(options: Options) -> list[str]:
    prompts, size = options.rollout.prompts_per_step, options.rollout.samples_per_prompt
    found = []
    for name, part in (("prm", options.prm), ("policy", options.policy)):
        if part.minibatches < 1 or part.microbatches < 1:
            continue
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
    policy = options.policy
    if policy.loss in SAMPLE_LOSSES and (
        policy.microbatch_tokens or (policy.microbatches > 1 and (prompts // policy.minibatches) % policy.microbatches)
    ):
        found.append(
            f"--policy.loss {policy.loss} compares the samples of a prompt, but the microbatches would cut through "
            "groups: choose --policy.microbatches that divide the prompts of a minibatch, and no "
            "--policy.microbatch-tokens"
        )
    pretrain = max(1, options.prm.pretrain_batch // size) * size if size > 0 else 0
    name, part = ("policy", options.policy) if options.reward.source == "critic" else ("prm", options.prm)
    if options.prm.pretrain_rollouts and pretrain % max(1, part.microbatches):
        found.append(
            f"--{name}.microbatches {part.microbatches} must divide the {pretrain} responses of a warm-up batch "
            "(--prm.pretrain-batch, whole groups)"
        )
    if 0 < options.prm.pretrain_rollouts < options.prm.pretrain_batch:
        found.append(
            f"--prm.pretrain-batch {options.prm.pretrain_batch} is larger than "
            f"--prm.pretrain-rollouts {options.prm.pretrain_rollouts}"
        )
    return found


def _layout(options: Options) -> list[str]:
    """Microbatches by tokens, and packed rows."""
    width = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    found = []
    for name, part in (("prm", options.prm), ("policy", options.policy)):
        if not part.microbatch_tokens:
            continue
        if part.microbatches > 1:
            found.append(
                f"--{name}.microbatches {part.microbatches} and --{name}.microbatch-tokens {part.microbatch_tokens} "
                "both choose the number of pieces: leave one out"
            )
        if part.microbatch_tokens < width:
            found.append(
                f"--{name}.microbatch-tokens {part.microbatch_tokens} is less than one row of {width} tokens "
                "(--rollout.max-prompt-tokens + --rollout.max-new-tokens)"
            )
    if options.prm.microbatch_tokens and options.prm.loss != "ce":
        found.append(
            f"--prm.microbatch-tokens cuts through groups, which --prm.loss {options.prm.loss} compares: use "
            "--prm.microbatches"
        )
    if options.batch.pack and not chunk_rows(options, 1):
        found.append(
            "--batch.pack needs microbatches of policy and PRM that divide the batch together: choose "
            "--policy.microbatches and --prm.microbatches of which one is a multiple of the other"
        )
    return found


def _trained_prm(prm: PRMOptions) -> list[str]:
    """What does not go together with a PRM of an earlier run."""
    if not prm.trained:
        return []
    found = []
    if prm.path:
        found.append("--prm.trained brings its own reference, and --prm.path would be another: leave one of them out")
    if prm.reference == "policy":
        found.append("--prm.trained has learned against its own reference: leave --prm.reference policy out")
    if prm.lora_rank:
        found.append(
            f"--prm.lora-rank {prm.lora_rank} adapts a frozen start, and the weights of --prm.trained are not its "
            "reference: leave --prm.lora-rank out"
        )
    return found


def _combinations(options: Options) -> list[str]:
    found = []
    advantage, prm, policy = options.advantage, options.prm, options.policy
    if advantage.process_coef == 0 and advantage.outcome_coef == 0:
        found.append("--advantage.process-coef and --advantage.outcome-coef are both 0: nothing would be learned")
    if prm.reference == "policy" and prm.path:
        found.append(
            "--prm.reference policy compares the PRM with the policy, so that both must start from the same "
            "weights; leave --prm.path out or use --prm.reference frozen"
        )
    found += _trained_prm(prm)
    useless = prm.update == "none" and prm.reference == "frozen" and not (prm.pretrain_rollouts or prm.trained)
    if useless and advantage.process_coef and options.reward.source == "implicit":
        found.append(
            "--prm.update none with a frozen reference never moves the PRM away from it, so that all process rewards "
            "are 0: warm it up with --prm.pretrain-rollouts, give --prm.trained, or choose another update"
        )
    if policy.kl_coef and policy.kl_placement == "loss" and policy.kl_estimator == "k1":
        found.append(
            "--policy.kl-estimator k1 has a gradient of mean zero as a loss: choose k2 or k3, or "
            "--policy.kl-placement reward"
        )
    rollout, off_policy = options.rollout, options.off_policy
    if rollout.max_lag and rollout.engine not in ("auto", "slots"):
        found.append(
            f"--rollout.max-lag {rollout.max_lag} samples in slots, but --rollout.engine is {rollout.engine}: leave "
            "one of the two out"
        )
    if rollout.devices and not rollout.max_lag:
        found.append("--rollout.devices are idle while the others train: give --rollout.max-lag 1 or more")
    if off_policy.low is not None and off_policy.low > off_policy.high:
        found.append(f"--off-policy.low {off_policy.low} is greater than --off-policy.high {off_policy.high}")
    if off_policy.objective == "bypass" and off_policy.weights not in ("auto", "none"):
        found.append(
            f"--off-policy.weights {off_policy.weights} corrects the decoupled objective, and --off-policy.objective "
            "bypass already clips around the sampler's log-probs: leave the weights out"
        )
    adapted = [name for name, rank in (("model", options.model.lora_rank), ("prm", prm.lora_rank)) if rank]
    if options.model.offload_reference and adapted:
        found.append(
            f"--model.offload-reference keeps the initial weights on the host, but --{adapted[0]}.lora-rank computes "
            "with them all the time: leave one of the two out"
        )
    if options.sft.steps and options.model.path and not options.sft.loaded:
        found.append(
            "--sft.steps warms a fresh model up; with --model.path set it to 0, or fine-tune that model with "
            "--sft.loaded and a smaller --sft.learning-rate"
        )
    if options.sft.loaded and options.model.lora_rank:
        found.append(
            "--sft.loaded trains all parameters, and --model.lora-rank keeps the policy's base as it is: fine-tune "
            "first, with --steps 0, and continue with the start/ of that run as --model.path"
        )
    if options.model.quantize == "keep" and not options.model.path:
        found.append("--model.quantize keep is for a GGUF file: give --model.path, or choose int8 or int4")
    if options.model.quantize != "none":
        bits = bits_of(options.model.quantize)
        found += [] if bits is None else options.model.quantization.problems(bits)
        implicit = advantage.process_coef != 0 and options.reward.source == "implicit"
        if implicit and not prm.lora_rank:
            found.append(
                f"--model.quantize {options.model.quantize} is for weights that stay frozen, but the whole PRM trains: "
                "give it adapters with --prm.lora-rank"
            )
    found += _best(options)
    if options.eval.patience and not options.eval.keep_best:
        found.append("--eval.patience needs --eval.keep-best: the metric that should improve")
    return found


def _best(options: Options) -> list[str]:
    """The metric of --eval.keep-best is known once an evaluation has run, but most mistakes are seen at once."""
    name, modes = options.eval.keep_best, []
    modes += ["greedy"] if options.eval.greedy else []
    modes += ["sampled"] if options.eval.sampled else []
    known = [f"eval/{mode}_{metric}" for mode in modes for metric in POLICY_METRICS]
    if not name or name in known or (name.startswith("prm_eval/") and options.eval.prm_problems):
        return []
    listed = ", ".join(known) or "none, since --eval.greedy and --eval.sampled are off"
    return [
        f"--eval.keep-best {name}: {nearest(name, known)}the metrics of an evaluation are {listed}, and prm_eval/... "
        "with --eval.prm-problems where the task knows the truth of steps"
    ]


def _pattern(options: Options) -> list[str]:
    """The regular expression of stated confidences."""
    if "confidence" not in options.reward.shaping:
        return []
    pattern = options.reward.confidence_pattern
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return [f"--reward.confidence-pattern {pattern!r} is not a regular expression: {error}"]
    if groups != 1:
        return [f"--reward.confidence-pattern {pattern!r} has {groups} groups; expected 1, the number (see (?:...))"]
    return []


def _engine(options: Options) -> list[str]:
    """What samples, and what a server needs."""
    engine, server = options.rollout.engine, options.rollout.server
    if engine in ("auto", "generate", "slots"):
        return []
    if not is_url(engine):
        return [
            f"--rollout.engine {engine!r} is unknown: expected auto, generate, slots, or the address of a server, such "
            "as http://localhost:8000"
        ]
    found = []
    if not server.folder:
        found.append(
            f"--rollout.engine {engine} needs --rollout.server.folder: a folder for the policy's weights, which the "
            "server must see too"
        )
    if options.connection.dialect == "text":
        found.append("--connection.dialect text: training needs a server that exchanges token ids")
    if not options.connection.logprobs and server.probe:
        found.append("--connection.no-logprobs leaves nothing to probe the server's weights with: give "
                     "--rollout.server.probe 0 too")  # fmt: skip
    return found


def _rewards(options: Options) -> list[str]:
    """Sources, shapings and credit that do not fit together."""
    reward, advantage, found = options.reward, options.advantage, []
    if not advantage.process_coef:
        return _without_process(options)
    if reward.source == "model" and not reward.path:
        found.append("--reward.source model needs --reward.path: the directory of a saved PRM")
    if reward.path and reward.source not in ("model", "values") and ":" not in reward.source:
        found.append(
            f"--reward.path is for --reward.source model or values, but the source is {reward.source}; the online "
            "PRM's initial weights are --prm.path"
        )
    if reward.source == "checker" and advantage.gate:
        found.append("--advantage.gate measures a PRM, and with --reward.source checker there is none")
    if advantage.gate_per == "group" and not advantage.gate:
        found.append("--advantage.gate-per group says how the gate is measured, and --advantage.gate is off")
    values = reward.source in ("values", "critic", "model") or ":" in reward.source
    if advantage.credit == "value" and not values:
        found.append(
            f"--advantage.credit value needs values of prefixes (--reward.source values, critic or model), but "
            f"{reward.source} gives rewards; use --advantage.credit step"
        )
    if "verifier" in reward.shaping and reward.shaping[-1] != "verifier":
        found.append("--reward.shaping verifier makes one reward per response: name it last")
    if "verifier" in reward.shaping and advantage.outcome_coef:
        found.append(
            "--reward.shaping verifier holds the outcome already: give --advantage.outcome-coef 0, or the outcome "
            "counts twice"
        )
    if "progress" in reward.shaping and not values:
        found.append(
            f"--reward.shaping progress needs values of prefixes (--reward.source values, critic or model), but "
            f"{reward.source} gives rewards"
        )
    if "progress" in reward.shaping and advantage.credit == "value":
        found.append("--reward.shaping progress takes differences of values, and --advantage.credit value takes them "
                     "again: use --advantage.credit step with the shaping")  # fmt: skip
    if advantage.credit == "value" and reward.shaping:
        found.append("--advantage.credit value reads the source's values, which --reward.shaping would change")
    if options.critic.rank_penalty and advantage.estimator != "ppo":
        found.append("--critic.rank-penalty is for the critic of --advantage.estimator ppo: leave one of the two out")
    if options.critic.rank_penalty and options.batch.pack:
        found.append("--critic.rank-penalty reads states in unpacked rows: leave --batch.pack out")
    if advantage.estimator == "ppo" and advantage.credit != "return":
        found.append(f"--advantage.estimator ppo has credit of its own (GAE); --advantage.credit {advantage.credit} "
                     "needs rloo, grpo, lambda_grpo or reinforce")  # fmt: skip
    if ":" in advantage.estimator and advantage.credit != "return":
        found.append(f"--advantage.estimator {advantage.estimator} assigns credit itself; leave --advantage.credit out")
    return found


def _without_process(options: Options) -> list[str]:
    """What outcome-only training has no use for."""
    if options.advantage.consistent < 1:
        return ["--advantage.consistent compares process rewards with outcomes: --advantage.process-coef 0 has none"]
    return []


def _online_prm(options: Options) -> list[str]:
    """What the implicit PRM learns from, and how its rewards are read."""
    prm, found = options.prm, []
    rows = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    used = bool(options.advantage.process_coef) and options.reward.source == "implicit"
    changed = [
        name
        for name, set_ in (
            ("replay", prm.replay), ("reading", prm.reading != "raw"), ("label-threshold", prm.label_threshold),
            ("class-weights", prm.class_weights != "none"), ("label-smoothing", prm.label_smoothing),
            ("trained", prm.trained), ("balance-coef", prm.balance_coef),
        )
        if set_
    ]  # fmt: skip
    if not used:
        why = f"the source is {options.reward.source}" if options.advantage.process_coef else "no PRM is kept"
        return [f"--prm.{name} is of the implicit PRM, but {why}: leave it out" for name in changed]
    if prm.loss != "ce":
        found += [
            f"--prm.{name} is for --prm.loss ce; {prm.loss} compares the responses of a group"
            for name in changed
            if name in ("replay", "class-weights", "label-smoothing")
        ]
        if prm.reading == "probabilities":
            found.append(f"--prm.reading probabilities are those of --prm.loss ce; {prm.loss} teaches none: use ranks")
    if prm.replay and prm.replay < rows:
        found.append(
            f"--prm.replay {prm.replay} is smaller than the {rows} responses of a step "
            "(--rollout.prompts-per-step x --rollout.samples-per-prompt), which it must hold"
        )
    if prm.replay and prm.update == "none":
        found.append(f"--prm.replay {prm.replay} is never learned from with --prm.update none: leave one of them out")
    if prm.replay and prm.offload:
        found.append("--prm.replay updates the PRM several times per step, between which --prm.offload would move the "
                     "optimiser's state: leave one of them out")  # fmt: skip
    if not prm.replay and (prm.replay_warm_up or prm.replay_age or prm.replay_batches > 1):
        found.append("--prm.replay-batches, --prm.replay-age and --prm.replay-warm-up need --prm.replay: the number of "
                     "rollouts that are kept")  # fmt: skip
    if prm.replay_warm_up and not prm.pretrain_rollouts:
        found.append(f"--prm.replay-warm-up {prm.replay_warm_up} needs the rollouts of --prm.pretrain-rollouts")
    if prm.pretrain_task_options and not prm.pretrain_rollouts:
        found.append("--prm.pretrain-task-options are those of --prm.pretrain-rollouts, which is 0")
    found += [
        f"--prm.{name} needs --prm.reading labels or failed_labels"
        for name, value in (("label-threshold", prm.label_threshold), ("label-trust", prm.label_trust))
        if value is not None and prm.reading not in LABEL_READINGS
    ]
    learns = prm.update != "none" or prm.pretrain_rollouts
    if prm.reading in LABEL_READINGS and prm.label_threshold is None and not learns:
        found.append(
            f"--prm.reading {prm.reading} finds its threshold while the PRM learns, and with --prm.update none it "
            "never does: give --prm.label-threshold"
        )
    return found
