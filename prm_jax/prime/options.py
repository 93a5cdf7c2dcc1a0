"""Options of ``prm-jax train``: plain frozen dataclasses, one per component, that import nothing heavy.

Defaults are PRIME's published settings (arXiv 2502.01456, its released scripts) where the paper fixes them; the presets
change what a small machine needs changed. An option that names something accepts a built-in name or
``package.module:name``.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from prm_jax.config_io import OptionsOf
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.model_options import ModelOptions
from prm_jax.option_ranges import above, at_least, within
from prm_jax.prime.advantage_options import AdvantageOptions
from prm_jax.prime.watch_options import WatchOptions
from prm_jax.rollouts.sampling_options import Connection
from prm_jax.rollouts.server_options import ServerOptions
from prm_jax.rollouts.turn_options import TurnOptions

Schedule = Literal["constant", "linear", "cosine"]
LABEL_READINGS = ("labels", "failed_labels")
"""The readings of `PRMOptions` that make step labels, with a threshold."""


@dataclass(frozen=True)
class TaskOptions:
    """What is solved, and how an answer is judged."""

    name: str = "carry"
    """Task: carry, arithmetic, gsm8k, a file of problems (JSONL, JSON, CSV, Parquet), a data set on the hub (org/name),
    the name of a reasoning-gym data set, or package.module:function or file.py:function."""
    options: Annotated[dict[str, str], OptionsOf("name")] = field(default_factory=dict)
    """Options of that task as name value pairs, for example: min_operands 3 max_operands 5. They are added to the
    preset's for the same task."""


@dataclass(frozen=True)
class SFTOptions:
    """Warm start: supervised fine-tuning of all parameters on the task's demonstrations."""

    steps: Annotated[int, at_least(0)] = 0
    """Number of steps; 0: none."""
    loaded: bool = False
    """Fine-tune a model of --model.path, which wants a smaller learning rate than a fresh one."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Demonstrations per step."""
    learning_rate: Annotated[float, at_least(0)] = 5e-3
    """Peak learning rate; cosine to a tenth of it."""
    warmup_fraction: Annotated[float, within(0, 1)] = 0.05
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, within(0, 1, high_open=True)] = 0.95
    """AdamW's second moment decay."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Maximum global norm of a gradient."""
    balance_coef: Annotated[float, at_least(0)] = 0.0
    """Weight of a loss that spreads tokens evenly over the experts of a sparse model, see --policy.balance-coef; 0:
    none."""


@dataclass(frozen=True)
class RolloutOptions:
    """How solutions are sampled, and which prompts the policy learns from."""

    prompts_per_step: Annotated[int, at_least(1)] = 256
    """Prompts per step, after filtering."""
    samples_per_prompt: Annotated[int, at_least(1)] = 4
    """Solutions per prompt (a group)."""
    max_new_tokens: Annotated[int, at_least(1)] = 3072
    """Maximum length of a response, in tokens."""
    max_prompt_tokens: Annotated[int, at_least(1)] = 1024
    """Longer prompts are left out and counted."""
    temperature: Annotated[float, above(0)] = 1.0
    """Sampling temperature; the policy's log-probs use it too, those of PRM and reference do not."""
    top_k: Annotated[int, at_least(0)] = 0
    """Sample among the k most probable tokens; 0: all."""
    top_p: Annotated[float, within(0, 1, low_open=True)] = 1.0
    """Sample within this much probability mass."""
    filter: Literal["none", "mask", "oversample", "resample"] = "resample"
    """Selection of prompts by solve rate. none: keep all; mask: failing groups stay in the batch but do not count;
    oversample: draw more prompts, passing ones first, failing ones as filler; resample: sample until enough pass."""
    solve_rate_low: Annotated[float, within(0, 1)] = 0.2
    """A prompt passes when its solve rate is at least this ..."""
    solve_rate_high: Annotated[float, within(0, 1)] = 0.8
    """... and at most this."""
    oversample_factor: Annotated[int, at_least(1)] = 4
    """Prompts drawn for each one kept, with filter=oversample."""
    max_resample_rounds: Annotated[int, at_least(1)] = 8
    """Maximum number of sampling rounds with filter=resample; after them the step trains on the groups collected so
    far, and the rest of the batch is masked."""
    drop_truncated: bool = False
    """Groups with a response that reached max_new_tokens fail the filter."""
    engine: str = "auto"
    """Sampling engine. generate: rectangles that last as long as their longest response; slots: a response that ends
    makes room for the next one, with the same batches up to rounding; auto: slots, unless --mesh.fsdp or
    --mesh.expert divides the parameters, of which slots need a whole copy per device (divided by --mesh.tensor); or the
    address of a server that exchanges token ids (vLLM, SGLang or llama.cpp), such as http://localhost:8000, see
    --rollout.server.* and --connection.*."""
    server: ServerOptions = field(default_factory=ServerOptions)
    """How that server gets the policy's weights."""
    turns: TurnOptions = field(default_factory=TurnOptions)
    """Environments and tools that answer the policy."""
    slots: Annotated[int, at_least(0)] = 0
    """Responses that each process decodes at the same time (engine=slots); 0: its share of a step's, up to 256 (64
    on a CPU)."""
    cache_dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """Type of the slots' keys and values: int8 takes about a quarter of float32's memory and moves log-probs slightly,
    int4 (with smoothed keys) an eighth and moves them more; --off-policy.weights correct for it. auto: the model's
    compute type."""
    lookahead: Annotated[int, at_least(0)] = 0
    """Prompts asked for beyond those that the step is known to need (engine=slots; filter resample or oversample). They
    keep slots busy and are wasted when they are not needed."""
    max_lag: Annotated[int, at_least(0)] = 0
    """Maximum number of updates by which a response's weights may be older than those that learn from it. 0: sampling
    and training take turns, and runs are reproducible; more: a thread samples while the policy trains."""
    running: Literal["resume", "restart", "keep"] = "resume"
    """What new weights do to responses in progress (max_lag). resume: their tokens are kept and read again; restart:
    they are sampled again; keep: they continue on old keys and values."""
    devices: Annotated[int, at_least(0)] = 0
    """Devices that only sample (max_lag), the last ones; the others train (--mesh.*). 0: all do both."""
    cut_groups: bool = False
    """Stop sampling a group as soon as it can no longer pass (engine=slots, filter=resample); rates and lengths in the
    metrics then depend on timing, the batch does not."""
    weights: Literal["none", "best_of_n", "best_random", "best_worst", "power"] = "none"
    """Share of the training signal that each response of a group gets by the rank of its outcome (PF-PPO)."""
    outcome_noise: Annotated[float, within(0, 0.5)] = 0.0
    """Share of training outcomes that are flipped at random, to study unreliable verifiers."""


@dataclass(frozen=True)
class BatchOptions:
    """How the responses of a step are laid out for the models."""

    length_buckets: Annotated[int, at_least(1)] = 4
    """The columns of a batch are cut to the smallest of this many lengths that holds it, multiples of 128 tokens; each
    length in use compiles the step once. 1: always max_prompt_tokens + max_new_tokens."""
    pack: bool = False
    """Put several responses into one row where they fit, so that the models read less padding. The numbers are those
    of unpacked responses to rounding; each of up to 8 row counts in use compiles the step once."""


@dataclass(frozen=True)
class RewardOptions:
    """Where process rewards come from, and how they are shaped before credit is assigned."""

    source: str = "implicit"
    """implicit: the online PRM (--prm.*); model: saved PRMs of any kind (--reward.path); checker: the task's own step
    checker, -1 on the first wrong step; values: Monte-Carlo values of prefixes; critic: values learned online; policy:
    the policy's log-ratio to its start; or package.module:name, a class or function that makes a source from
    (options, start)."""
    path: tuple[str, ...] = ()
    """Directories of saved PRMs (model), or the prover that completes prefixes (values)."""
    reference: str = ""
    """Directory of the reference of an implicit PRM that was saved without one (model)."""
    pessimism: Annotated[float, at_least(0)] = 1.0
    """Standard deviations subtracted from the mean of several saved PRMs."""
    beta: Annotated[float, above(0)] = 0.05
    """Scale of the log-ratio (policy)."""
    rollouts: Annotated[int, at_least(1)] = 4
    """Completions sampled after each step (values)."""
    best_of: Annotated[int, at_least(1)] = 1
    """Value of the best of this many completions, 1 - (1 - v)^k (values, model): a stronger prover."""
    flip: Annotated[float, within(0, 1)] = 0.0
    """Share of step labels that are flipped at random (checker), to study imperfect checkers."""
    granularity: Literal["token", "step"] = "token"
    """A reward at every token, or summed at the last token of every step."""
    shaping: tuple[str, ...] = ()
    """Shapings, applied in this order: clip, delta, progress, min, confidence, verifier (a score below the outcome,
    whose own weight is then 0), or package.module:function."""
    clip_threshold: float = 0.0
    """clip: step rewards become min(reward - threshold, 0)."""
    progress_alpha: float | None = None
    """progress: add the step's own value to alpha times its progress; none: progress alone."""
    verifier_scale: Annotated[float, at_least(0)] = 0.5
    """verifier: scale of the response's process reward in sigmoid(scale * reward) + outcome - 1."""
    confidence_weight: Annotated[float, at_least(0)] = 2.0
    """confidence: strength of the adjustment."""
    confidence_kind: Literal["difference", "threshold"] = "difference"
    """confidence: form of the adjustment."""
    confidence_pattern: str = r"[Cc]onfidence[:=]?\s*([0-9]+(?:\.[0-9]+)?)"
    """confidence: regular expression whose first group is the confidence that a response states."""


@dataclass(frozen=True)
class PRMOptions:
    """The online implicit process reward model: beta * log(prm / reference), learned from outcomes alone."""

    path: str = ""
    """Initial weights (a smaller model with the same tokenizer, for example); empty: the policy's."""
    trained: str = ""
    """Directory of an implicit PRM that is trained already, such as the prm/ of an earlier run. It continues from there
    (or stays as it is, with --prm.update none), and its own reference is the reference."""
    lora_rank: Annotated[int, at_least(0)] = 0
    """Rank of the PRM's adapters on its frozen start; 0: all parameters train."""
    reference: Literal["frozen", "policy"] = "frozen"
    """The reference: the PRM's own frozen start, or the policy that sampled."""
    update: Literal["none", "after", "before", "reverse"] = "after"
    """When the PRM learns from a batch. after: rewards come from the training pass itself; before: update, then score
    again; reverse: score whole groups first, then as after (for the detached losses); none: never."""
    rows: Literal["kept", "judged", "mixed"] = "kept"
    """Rows that the PRM learns from. kept: those that pass --rollout.filter; judged: all with a known outcome; mixed:
    those of them whose group has different outcomes, so that the PRM does not learn which problems are hard."""
    loss: Literal["ce", "dpo", "detached", "detached_bon_rm", "detached_bon_acc"] = "ce"
    """Cross-entropy on the outcome, DPO over all pairs of a right and a wrong response of a group, or the released
    detached pair losses."""
    class_weights: Literal["none", "balanced"] = "none"
    """Factors of the cross-entropy. balanced: right and wrong responses of a batch weigh equally."""
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Share of outcomes that the cross-entropy believes to be wrong, such as the verifier's error rate."""
    beta: Annotated[float, above(0)] = 0.05
    """Scale of the log-ratio."""
    reading: Literal["raw", "labels", "failed_labels", "probabilities", "ranks"] = "raw"
    """What rewards are made of the PRM's. raw: as they are; labels: -1 on the first step whose reward is below a
    threshold, 0 elsewhere; failed_labels: the same, but only in responses whose outcome is below 1/2; probabilities: by
    how much a step changes the PRM's probability of success; ranks: the step's rank in the batch, -1/2 to 1/2."""
    label_threshold: float | None = None
    """That threshold; none: the one at which as many of the responses that the PRM learns from have such a step as have
    failed, averaged over about ten updates."""
    label_trust: Annotated[float | None, within(0, 1)] = None
    """Multiply the labels by how much better than chance they tell failed responses from others: the share of failed
    responses that have one, minus that of the others, over about ten updates; below this number they are left out.
    none: labels count as they are."""
    include_last: bool = True
    """The response's last token gets a process reward, too."""
    balance_coef: Annotated[float, at_least(0)] = 0.0
    """Weight of a loss that spreads tokens evenly over the experts of a sparse PRM, see --policy.balance-coef; 0:
    none."""
    learning_rate: Annotated[float, at_least(0)] = 1e-6
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """Learning rate after its warm-up: constant, linear to 0, or cosine to a tenth, over the run."""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """Optimiser steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: Annotated[float, above(0)] = 10.0
    """Maximum global norm of a gradient."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """How Adam's moments are stored. float32: 8 bytes per parameter; bfloat16: the first moment in bfloat16, 6 bytes;
    int8: both in 8 bits with a scale per row, 2 bytes."""
    offload: bool = False
    """Keep the optimiser's state in the host's pinned memory between updates, where the backend has it."""
    minibatches: Annotated[int, at_least(1)] = 1
    """Optimiser steps per pass over the batch (whole groups each)."""
    epochs: Annotated[int, at_least(1)] = 1
    """Passes over the batch."""
    microbatches: Annotated[int, at_least(1)] = 1
    """Pieces in which the gradient of one optimiser step is accumulated (exactly)."""
    microbatch_tokens: Annotated[int, at_least(0)] = 0
    """Instead of that number: microbatches of at most this many tokens per device, padding included; 0: the number."""
    replay: Annotated[int, at_least(0)] = 0
    """Recent rollouts that are kept, on every device and in checkpoints, for the PRM to learn from again (loss=ce); 0:
    none."""
    replay_batches: Annotated[int, at_least(1)] = 1
    """Additional optimiser steps per training step, each on as many replayed rollouts as a step samples."""
    replay_age: Annotated[int, at_least(0)] = 0
    """Steps after which a rollout is no longer replayed; 0: when newer ones replace it."""
    replay_warm_up: Annotated[float, within(0, 1)] = 0.0
    """Share of the replayed rollouts that comes from those of the warm-up (--prm.pretrain-rollouts), which are then
    kept as well."""
    pretrain_rollouts: Annotated[int, at_least(0)] = 0
    """Rollouts of the initial policy from which the PRM learns, by outcomes alone, before the policy does."""
    pretrain_task_options: dict[str, str] = field(default_factory=dict)
    """Options of the task of these rollouts that differ from --task.options, as name value pairs: easier problems, from
    which outcomes teach more."""
    pretrain_epochs: Annotated[int, at_least(1)] = 4
    """Passes over them."""
    pretrain_batch: Annotated[int, at_least(1)] = 128
    """Rollouts per optimiser step of that warm-up."""


@dataclass(frozen=True)
class PolicyOptions:
    """The policy's loss and optimiser."""

    learning_rate: Annotated[float, at_least(0)] = 5e-7
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """Learning rate after its warm-up: constant, linear to 0, or cosine to a tenth, over the run."""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """Optimiser steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, at_least(0)] = 0.01
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, within(0, 1, high_open=True)] = 0.999
    """AdamW's second moment decay."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Maximum global norm of a gradient."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """How Adam's moments are stored. float32: 8 bytes per parameter; bfloat16: the first moment in bfloat16, 6 bytes;
    int8: both in 8 bits with a scale per row, 2 bytes."""
    offload: bool = False
    """Keep the optimiser's state in the host's pinned memory between updates, where the backend has it."""
    loss: str = "clipped"
    """clipped: the clipped surrogate. On the samples of a prompt: brain, cross-entropy to the posterior given the
    rewards; gpo and sppo, squared distance to preferences over the policy that sampled. Or package.module:function of
    (logp, old_logp, advantages, inputs)."""
    sample_temperature: Annotated[float, above(0)] = 1.0
    """Divides rewards and preferences in brain, gpo and sppo: small values follow them more closely."""
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
    balance_coef: Annotated[float, at_least(0)] = 0.0
    """Weight of a loss that spreads tokens evenly over the experts of a sparse model, within each microbatch (the
    Switch transformer's, 1 for an even spread); 0: none."""
    minibatches: Annotated[int, at_least(1)] = 1
    """Optimiser steps per pass over the batch (whole groups each)."""
    epochs: Annotated[int, at_least(1)] = 1
    """Passes over the batch."""
    microbatches: Annotated[int, at_least(1)] = 1
    """Pieces in which the gradient of one optimiser step is accumulated (exactly)."""
    microbatch_tokens: Annotated[int, at_least(0)] = 0
    """Instead of that number: microbatches of at most this many tokens per device, padding included; 0: the number."""


@dataclass(frozen=True)
class OffPolicyOptions:
    """Corrections for tokens that were drawn with other probabilities than those that the trainer computes."""

    objective: Literal["decoupled", "bypass"] = "decoupled"
    """decoupled: ratios are clipped around the trainer's own old log-probs, and --off-policy.weights correct for the
    sampler; bypass: ratios are clipped around the sampler's log-probs, which also saves a forward pass where the
    trainer's are needed."""
    weights: Literal["auto", "none", "token", "sequence", "geometric"] = "auto"
    """Importance weights of the sampler, of tokens, of whole responses (product), or of their geometric mean. auto: of
    tokens, and none where the sampler computes what the trainer does: this process, float32, all tokens kept."""
    low: Annotated[float | None, at_least(0)] = None
    """Lower bound of the weights; none: no bound."""
    high: Annotated[float, above(0)] = 2.0
    """Upper bound of the weights."""
    action: Literal["truncate", "mask"] = "truncate"
    """Weights outside the bounds are clipped, or become 0."""


@dataclass(frozen=True)
class CriticOptions:
    """A value head on a copy of the policy's start: the critic of estimator=ppo, or reward.source=critic."""

    learning_rate: Annotated[float, at_least(0)] = 1e-5
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """Learning rate over the run: constant, linear to 0, or cosine to a tenth."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Maximum global norm of a gradient."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """How Adam's moments are stored. float32: 8 bytes per parameter; bfloat16: the first moment in bfloat16, 6 bytes;
    int8: both in 8 bits with a scale per row, 2 bytes."""
    offload: bool = False
    """Keep the optimiser's state in the host's pinned memory between updates, where the backend has it."""
    clip: Annotated[float | None, above(0)] = 0.2
    """Values move at most this far from the old ones in one update; none: unbounded."""
    rank_penalty: Annotated[float, at_least(0)] = 0.0
    """Weight of BEER's bound on the similarity of the features of consecutive tokens (ppo; 0.001 in its paper). It can
    only bind where tokens have rewards, as process rewards give them."""


@dataclass(frozen=True)
class EvalOptions:
    """Evaluation on problems that training never sees."""

    every: Annotated[int, at_least(0)] = 10
    """Steps between evaluations; 0: only before and after."""
    problems: Annotated[int, at_least(1)] = 512
    """Problems per evaluation."""
    greedy: bool = True
    """Evaluate greedy decoding."""
    sampled: bool = True
    """Evaluate one sampled response per problem."""
    prm_problems: Annotated[int, at_least(0)] = 512
    """Responses of the initial policy, one per problem, on which the PRM is tested against exact step labels; 0: none.
    Twice as many problems are drawn: the first half only picks the threshold."""
    batch_size: Annotated[int, at_least(1)] = 256
    """Prompts generated for at once."""
    keep_best: str = ""
    """Keep the policy of the best evaluation by this metric, such as eval/greedy_accuracy; empty: none."""
    patience: Annotated[int, at_least(0)] = 0
    """Stop after this many consecutive evaluations without a new best; 0: never."""


@dataclass(frozen=True)
class Options:
    """Everything that defines a run; written into its directory as resolved."""

    task: TaskOptions = field(default_factory=TaskOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    sft: SFTOptions = field(default_factory=SFTOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    reward: RewardOptions = field(default_factory=RewardOptions)
    prm: PRMOptions = field(default_factory=PRMOptions)
    advantage: AdvantageOptions = field(default_factory=AdvantageOptions)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    off_policy: OffPolicyOptions = field(default_factory=OffPolicyOptions)
    critic: CriticOptions = field(default_factory=CriticOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)
    watch: WatchOptions = field(default_factory=WatchOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    connection: Connection = field(default_factory=Connection)
    """How to talk to the server of --rollout.engine."""
    seed: Annotated[int, within(0, 2**32 - 1)] = 0
    """Seed of everything random."""
    steps: Annotated[int, at_least(0)] = 60
    """Training steps of the policy."""
    baseline: bool = False
    """Afterwards train the same policy from the same start with outcomes only, for comparison."""
    save_every: Annotated[int, at_least(1)] = 10
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Number of checkpoints kept."""
    sample_every: Annotated[int, at_least(1)] = 10
    """Steps between samples written as text and HTML with their step rewards."""
    max_bad_steps: Annotated[int, at_least(1)] = 3
    """Consecutive steps with a non-finite update after which a run stops; each is skipped and counted."""
    watchdog: Annotated[float, at_least(0)] = 0.0
    """Seconds after which a step, its rollouts, an evaluation or saving prints the stacks of all threads; 0: never. The
    first of each may take ten times as long, since it compiles."""
    watchdog_exit: Annotated[float, at_least(0)] = 0.0
    """Seconds after which such a phase ends the process with exit code 76, so that a stuck process cannot hold the
    others for ever; 0: never."""
    profile: Annotated[int, at_least(0)] = 0
    """Step of which a trace for ui.perfetto.dev is written into profile/; 0: none. The first step compiles."""
    max_empty_steps: Annotated[int, at_least(1)] = 20
    """Consecutive steps without a prompt that passes the filter after which a run stops."""
    callbacks: tuple[str, ...] = ()
    """Functions of an event, as package.module:function, called after every step and evaluation."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra tb)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra wandb)."""
    plots: bool = True
    """Draw plots at the end (extra plots)."""
