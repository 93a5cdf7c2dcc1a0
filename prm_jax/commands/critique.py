"""``prm-jax critique``: a language model judges the steps of solutions in words."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prm_jax.commands import divided, results
from prm_jax.commands.devices import mesh_of
from prm_jax.commands.progress import Progress
from prm_jax.commands.scoring import make_directory, read, write_scores
from prm_jax.config_io import OptionsOf
from prm_jax.errors import UserError
from prm_jax.input_files import open_input
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.option_ranges import at_least, check_ranges, within
from prm_jax.prm.reward_model_options import ScoringOptions, TextLayout
from prm_jax.rollouts.sampling_options import Connection
from prm_jax.runs import processes
from prm_jax.runs.distributed_options import DistributedOptions

if TYPE_CHECKING:
    from prm_jax.data.step_data import StepRecord

COMMON_OPTIONS = (
    "out", "critique", "votes", "vote", "reverse", "weigh", "keep", "max-new-tokens", "temperature", "chat", "server",
    "seed", "resume", "format", "skip-bad",
)  # fmt: skip
_NOT_SETTINGS = (
    "out", "resume", "chunk", "keep", "weigh", "vote", "distributed", "mesh", "server", "rows",
    "connection",
)  # fmt: skip


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


def run(options: Options) -> None:
    """Judges chunk by chunk, keeping the critiques, and writes the results at the end."""
    from prm_jax.data.step_data import to_json, write_step_data
    from prm_jax.prm.critiques import session

    roles = _roles(options)
    records = _read(options)
    make_directory(options.out)
    partial = options.out / "critiques.partial.jsonl"
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_SETTINGS}
    first = results.header(settings, _fingerprint([to_json(record) for record in records]))
    done = divided.known(lambda: results.begin_or_resume(partial, first, resume=options.resume))
    _check_done(done, records, partial)
    engine: Any = _engine(options, roles) if len(done) < len(records) else None
    if not done:
        divided.begin(partial, first)
    progress = Progress(len(records), len(done))

    def judged(own: Sequence["StepRecord"], number: int) -> list[dict[str, Any]]:
        return session.criticise(
            engine, own, roles, layout=_layout(options), votes=options.votes, max_new_tokens=options.max_new_tokens,
            on_progress=progress.wrote,
        )  # fmt: skip

    with results.kept(partial), progress:
        while len(done) < len(records):
            start = len(done)
            chunk = records[start : start + options.chunk]
            lines = sum(divided.shares(chunk, start, judged), [])
            done += lines
            divided.append(partial, first, start, lines)
            progress.update(len(done), "judged")
    if not processes.is_first():
        return
    found = session.conclude(
        records, done, roles, how=options.vote, by_outcome=options.weigh == "outcomes",
        agreeing=options.keep == "agreeing", told={"method": "critique", "model": options.model},
    )  # fmt: skip
    write_step_data(options.out / "labelled.jsonl", found.labelled)
    write_step_data(options.out / "critiques.jsonl", found.to_learn)
    write_scores(options.out / "scores.jsonl", found.scored)
    results.write(options.out / "summary.json", [json.dumps(found.summary, indent=1)])
    partial.unlink(missing_ok=True)
    print(_table(found.summary))
    print(f"{len(records)} solutions, {len(found.to_learn)} critiques to learn from: {options.out}")


def _roles(options: Options) -> list[Any]:
    """The judges; refuses options that cannot work."""
    from prm_jax.prm.critiques.formats import find_format
    from prm_jax.prm.critiques.session import roles

    problems = check_ranges(options)
    if not options.critique:
        problems.append("--critique is empty: name at least one format, such as thinkprm")
    repeated = [name for name in dict.fromkeys(options.critique) if options.critique.count(name) > 1]
    if repeated:
        problems.append(f"--critique names {repeated[0]!r} twice: for more critiques use --votes")
    if options.instruction is not None and len(options.critique) > 1:
        problems.append("--instruction is for one format: give a single --critique with it")
    if problems:
        raise UserError("\n".join(problems))
    text = ""
    if options.instruction is not None:
        with open_input(options.instruction, "the instruction") as file:
            text = file.read(1 << 20).decode(errors="replace").strip()
        if not text:
            raise UserError(f"--instruction {options.instruction} is empty")
    forms = {name: find_format(name, instruction=text, option="critique") for name in options.critique}
    return roles(forms, reverse=options.reverse)


def _layout(options: Options) -> TextLayout:
    return TextLayout(chat="response" if options.chat else "none", system=options.system, separator="", pieces="prompt")


def _engine(options: Options, roles: Sequence[Any]) -> Any:
    import jax

    from prm_jax.models import Tokenizer, find_model, load_weights
    from prm_jax.models.sharding import rows_over
    from prm_jax.rollouts import SamplingOptions, engine_on_server
    from prm_jax.rollouts.local import Batching, LocalEngine

    path, sampling = find_model(options.model), SamplingOptions(options.temperature, top_p=options.top_p)
    tokenizer, stops = Tokenizer.load(path), tuple({role.stop: tuple(role.form.stop) for role in roles}.values())
    if options.server:
        name = options.connection.model or options.model
        return engine_on_server(
            options.server, name, tokenizer, connection=options.connection, sampling=sampling, seed=options.seed,
            stops=stops,
        )  # fmt: skip
    mesh, dtype = mesh_of(options.mesh), options.dtype
    config, params = load_weights(path, dtype=dtype, mesh=mesh)
    return LocalEngine(
        dataclasses.replace(config, compute_dtype=dtype), params, key=jax.random.key(options.seed), sampling=sampling,
        stops=stops, tokenizer=tokenizer, batching=Batching(options.rows, 1 if mesh is None else rows_over(mesh)),
    )  # fmt: skip


def _read(options: Options) -> "list[StepRecord]":
    return read(options.data, ScoringOptions(
        format=options.format, skip_bad=options.skip_bad, split=options.split, split_options=options.split_options
    ))  # fmt: skip


def _fingerprint(lines: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(json.dumps(line, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _check_done(done: Sequence[Mapping[str, Any]], records: "Sequence[StepRecord]", path: pathlib.Path) -> None:
    for number, line in enumerate(done):
        if number >= len(records) or line.get("id") != records[number].id or "critiques" not in line:
            raise UserError(f"cannot continue {path}: line {number + 2} is not a critique of its solution; remove it")


def _table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """A line per judge, and one for all together."""
    columns = ("critiques", "with_verdict", "weight", "first_error_agreement", "outcome_agreement")
    names = ("critiques", "with verdict", "weight", "same first error", "same outcome")
    lines = [f"{'judge':24s}" + "".join(f"{name:>18s}" for name in names)]
    for judge, found in summary.items():
        cells = ["" if name not in found else f"{found[name]:.3f}".removesuffix(".000") for name in columns]
        lines.append(f"{judge:24s}" + "".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)
