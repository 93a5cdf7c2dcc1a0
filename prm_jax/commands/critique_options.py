"""The options of ``prm-jax critique``."""

import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from prm_jax.config_io import OptionsOf
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.option_ranges import at_least, within
from prm_jax.rollouts.sampling_options import Connection
from prm_jax.runs.distributed_options import DistributedOptions


@dataclass(frozen=True)
class Options:
    """Judge the steps of solutions with a language model that writes critiques.

    Writes into --out: labelled.jsonl, the solutions with the judges' step labels; scores.jsonl, their scores, for
    eval --scored and for train-prm --data.agree-with; critiques.jsonl, critiques for train-prm --prm.kind generative;
    and summary.json.
    """

    model: Annotated[str, tyro.conf.Positional]
    """The judge: Hugging Face directory, GGUF file, name on the hub (org/name), or "smollm2"."""
    data: Annotated[pathlib.Path, tyro.conf.Positional]
    """Step data, or JSON lines with "prompt" and "response"."""
    out: pathlib.Path = pathlib.Path("critiques")
    """Directory for the results."""
    critique: tuple[str, ...] = ("thinkprm",)
    """Formats, each of which is a judge: thinkprm (one critique judges the steps up to the first wrong one), genprm and
    r_prm (a critique per step), brief (verdicts without reasoning), or package.module:function or file.py:function."""
    instruction: pathlib.Path | None = None
    """File with the instruction to use instead of the format's own; {problem}, {steps}, {lines}, {previous}, {step} and
    {reference} stand for the solution's."""
    votes: Annotated[int, at_least(1)] = 1
    """Critiques per solution, or per step, and format."""
    vote: Literal["probability", "majority"] = "probability"
    """A judge's vote on a step: the mean probability of the verdict "right", or the share of critiques with it."""
    reverse: bool = False
    """Ask each judge a second time, told the correct answer in provenance.reference (reverse verification)."""
    weigh: Literal["equal", "outcomes"] = "equal"
    """Weights of the judges: equal, or the log-odds of how often "all steps right" agrees with the outcome."""
    keep: Literal["all", "agreeing"] = "all"
    """Which critiques to learn from: all with a verdict, or those that agree with the labels in the data."""
    max_new_tokens: Annotated[int, at_least(1)] = 512
    """Maximum length of a critique, in tokens."""
    temperature: Annotated[float, at_least(0)] = 0.6
    """Sampling temperature; 0 is greedy decoding."""
    top_p: Annotated[float, within(0, 1, low_open=True)] = 1.0
    """Sample from the smallest set of tokens with this share of the probability mass."""
    rows: Annotated[int, at_least(1)] = 64
    """Critiques that are sampled at once (without --server)."""
    chunk: Annotated[int, at_least(1)] = 32
    """Solutions that are judged together; also the most that an interruption loses."""
    seed: Annotated[int, within(0, 2**32 - 1)] = 0
    """Seed of the sampling."""
    chat: bool = False
    """Wrap instructions into the model's chat template."""
    system: str = ""
    """System message of the chat."""
    server: str = ""
    """Address of a server that runs the judge, as in prm-jax search; only the tokenizer is then read here."""
    connection: Connection = field(default_factory=Connection)
    """How to talk to that server."""
    resume: bool = False
    """Continue after an interruption."""
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""
    format: str = "auto"
    """Format of step data, as in prm-jax score."""
    skip_bad: bool = False
    """Skip records that cannot be used, and count them, instead of refusing the file."""
    split: str = "newline"
    """How a response that comes without steps is cut into them, as in prm-jax score."""
    split_options: Annotated[dict[str, str], OptionsOf("split")] = field(default_factory=dict)
    """Options of the splitter."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of parameters and arithmetic (without --server)."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Devices over which the judge is split."""
