"""``prm-jax critique``: a language model judges the steps of solutions in words."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prm_jax.commands import divided, json_lines, results
from prm_jax.commands.critique_options import Options
from prm_jax.commands.devices import mesh_of
from prm_jax.commands.progress import Progress
from prm_jax.commands.scoring import make_directory, read, write_scores
from prm_jax.errors import UserError
from prm_jax.input_files import open_input
from prm_jax.option_ranges import check_ranges
from prm_jax.prm.reward_model_options import ScoringOptions, TextLayout
from prm_jax.runs import processes

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


def run(options: Options) -> None:
    """Judges chunk by chunk, keeping the critiques, and writes the results at the end."""
    from prm_jax.data.step_data import to_json, write_step_data
    from prm_jax.prm.critiques import session

    roles = _roles(options)
    records = _read(options)
    make_directory(options.out)
    partial = options.out / "critiques.partial.jsonl"
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_SETTINGS}
    first = results.header(settings, json_lines.fingerprint([to_json(record) for record in records]))
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
    json_lines.write(options.out / "summary.json", [json.dumps(found.summary, indent=1)])
    partial.unlink(missing_ok=True)
    print(session.summary_table(found.summary))
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


def _check_done(done: Sequence[Mapping[str, Any]], records: "Sequence[StepRecord]", path: pathlib.Path) -> None:
    for number, line in enumerate(done):
        if number >= len(records) or line.get("id") != records[number].id or "critiques" not in line:
            raise UserError(f"cannot continue {path}: line {number + 2} is not a critique of its solution; remove it")
