"""Rounds of self-training: trees or samples of a policy -> values and right solutions -> train -> again, three times.

    python -m experiments.self_training.main --out experiments/self_training

AlphaMath's loop (arXiv 2405.03553) and ReST-MCTS*'s (arXiv 2406.03816), with what examples/self_training.sh calls,
against imitation of right samples, on chain sums whose teacher drops carries. After every round the policy answers
held-out problems alone, and with a beam over steps that the round's values rank. Every round is left under
runs/self_training/; finished parts are not run again.
"""

import dataclasses
import json
import pathlib
from typing import Any, cast

from experiments import report
from experiments.arms import run_folder, warm_start
from experiments.values import sampled_solutions
from prm_jax import prm as prms
from prm_jax.commands import label, search
from prm_jax.data.step_data import read_step_data, write_step_data
from prm_jax.models.model_options import ModelOptions
from prm_jax.prime import Options
from prm_jax.prime.options import EvalOptions, RolloutOptions, SFTOptions, TaskOptions
from prm_jax.prm.labelling.tree_options import TreeOptions
from prm_jax.rollouts.sampling_options import StepOptions

LOOPS = {
    "AlphaMath": ("alphamath", "q"),
    "ReST-MCTS*": ("rest_mcts", "quality"),
    "right samples": ("", ""),
}
"""Loop -> rule of the tree and its labels; none: whole solutions and their outcomes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The task, the trees, what is learned from them, and the search."""

    operands: int = 4
    careless: float = 0.4
    sft_steps: int = 500
    loops: tuple[str, ...] = tuple(LOOPS)
    rounds: int = 3
    labelled: int = 96  # new problems per round
    simulations: int = 12
    width: int = 3
    epochs: int = 4
    searched: int = 240
    beams: int = 2
    runs: str = "runs/self_training"
    seeds: int = 3


SMOKE = Config(
    operands=3, sft_steps=30, loops=("right samples",), rounds=1, labelled=8, simulations=3, epochs=1,
    searched=2, beams=1, runs="", seeds=1,
)  # fmt: skip


def settings(config: Config, seed: int) -> Options:
    """Of the start: a policy taught by the careless teacher."""
    task = {"min_operands": config.operands, "max_operands": config.operands, "drop_carry": config.careless}
    return Options(
        task=TaskOptions("carry", {name: str(value) for name, value in {**task, "num_eval": 240}.items()}),
        model=ModelOptions(hidden_size=32, intermediate_size=96, num_layers=2),
        sft=SFTOptions(steps=config.sft_steps, batch_size=32, learning_rate=1e-2),
        rollout=RolloutOptions(
            max_prompt_tokens=2 * config.operands + 2, max_new_tokens=8 * (config.operands - 1) + 6
        ),
        eval=EvalOptions(problems=config.searched, greedy=False, prm_problems=0),
        steps=0, seed=seed, save_every=1000, keep_checkpoints=1, sample_every=1000, plots=False,
    )  # fmt: skip


def data_of(config: Config, options: Options, loop: str, place: "Round") -> tuple[pathlib.Path, int]:
    """(step data of the round, number of solutions in it)."""
    rule, labels = LOOPS[loop]
    path, first = place.folder / "data.jsonl", place.number * config.labelled
    if not path.is_file() and rule:
        label.run(label.Options(
            model=str(place.policy), out=path, task="carry", task_options=options.task.options, seed=options.seed,
            problems=config.labelled, first_problem=first, chunk=config.labelled, method="tree",
            labels=cast(Any, labels),
            tree=TreeOptions(
                rule=cast(Any, rule), scorer=place.values, simulations=config.simulations, width=config.width,
                max_steps=config.operands,
            ),
            sampling=_steps(options), resume=True,
        ))  # fmt: skip
    elif not path.is_file():
        samples = config.simulations * config.width // config.operands  # about as many tokens as the trees
        other = dataclasses.replace(options, seed=options.seed + 100 * place.number)
        records = sampled_solutions(place.policy, other, problems=config.labelled, samples=samples, first=first)
        write_step_data(path, records)
    return path, len(list(read_step_data(path)))


@dataclasses.dataclass(frozen=True)
class Round:
    """Where a round is, and the models that it starts with.

    Attributes:
      folder: of the round.
      number: from 0.
      policy: directory of the policy.
      values: directory of the value model, "none" in the first round.
    """

    folder: pathlib.Path
    number: int
    policy: pathlib.Path
    values: str


def learned(
    config: Config, options: Options, place: Round, data: pathlib.Path, kind: Any, path: pathlib.Path
) -> pathlib.Path:
    """A model of a kind, trained on the round's data from its policy."""
    if not (path / "result.json").is_file():
        prms.train(
            prms.TrainPRMOptions(
                text=prms.POLICY_LAYOUT, model=prms.BaseOptions(path=str(place.policy)), prm=kind,
                data=prms.DataOptions(path=str(data), max_length=64),
                train=prms.OptimizerOptions(learning_rate=1e-3, batch_size=32, epochs=config.epochs),
                seed=options.seed, plots=False,
            ),
            path, resume=path.is_dir(),
        )  # fmt: skip
    return path / "model"


def accuracy(
    config: Config, options: Options, policy: pathlib.Path, values: pathlib.Path | None, out: pathlib.Path
) -> float:
    """Of held-out answers: one sample per problem, or the beam ranked by values."""
    done = out.with_suffix(".json")
    if not done.is_file():
        method: dict[str, Any] = {"method": "step_beam", "scorer": str(values)}
        if values is None:
            method = {"method": "majority", "samples": 1}
        search.run(search.Options(
            model=str(policy), task="carry", task_options=options.task.options, problems=config.searched,
            chunk=config.searched, seed=options.seed, beams=config.beams, width=config.width,
            max_steps=config.operands, sampling=_steps(options), out=out, resume=out.is_file(), **method,
        ))  # fmt: skip
        lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
        done.write_text(json.dumps(sum(line["correct"] for line in lines) / len(lines)))
    found: float = json.loads(done.read_text())
    return found


def _steps(options: Options) -> StepOptions:
    return StepOptions(max_new_tokens=options.rollout.max_new_tokens, step_tokens=12, rows=256)


def loop_table(
    config: Config, options: Options, loop: str, start: pathlib.Path, folder: pathlib.Path
) -> dict[str, dict[str, float]]:
    """Round -> accuracies of one loop, from the start policy on."""
    policy, values = start, "none"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"0": {"round": 0.0, "policy alone": accuracy(config, options, start, None, folder / "start.jsonl")}}
    for number in range(config.rounds):
        place = Round(folder / str(number + 1), number, policy, values)
        place.folder.mkdir(parents=True, exist_ok=True)
        data, count = data_of(config, options, loop, place)
        value = learned(config, options, place, data, prms.Value(), place.folder / "values")
        if any((record.outcome or 0.0) > 0.5 for record in read_step_data(data)):
            policy = learned(config, options, place, data, prms.Imitation(), place.folder / "imitation")
        values = str(value)
        rows[str(number + 1)] = {
            "round": number + 1.0, "solutions": float(count),
            "policy alone": accuracy(config, options, policy, None, place.folder / "alone.jsonl"),
            "with search": accuracy(config, options, policy, value, place.folder / "beam.jsonl"),
        }  # fmt: skip
    return rows


def run(config: Config) -> report.Tables:
    """Runs the rounds that are not there yet; the tables."""
    found: dict[str, list[Any]] = {loop: [] for loop in config.loops}
    with run_folder(config.runs) as root:
        start = warm_start(settings(config, 0), root / "start")
        for seed in range(config.seeds):
            for loop in config.loops:
                folder = root / f"seed{seed}" / loop.replace("*", "").replace(" ", "_")
                found[loop].append(loop_table(config, settings(config, seed), loop, start, folder))
    tables = {loop: report.average(rows) for loop, rows in found.items()}
    curves: dict[str, dict[str, dict[str, float]]] = {"policy alone": {}, "with search": {}}
    for name, curve in curves.items():
        for loop, table in tables.items():
            for number, row in table.items():
                if name in row:
                    curve.setdefault(number, {"round": row["round"]})[loop] = row[name]
    return {**tables, **curves, "after the last round": last_round(config, found)}


def last_round(config: Config, found: dict[str, list[Any]]) -> dict[str, dict[str, float]]:
    """Differences paired by seed: from the start policy, of search, and from the loop of right samples."""
    end, plain, table = str(config.rounds), "right samples", {}
    for loop, runs in found.items():
        alone = [one[end]["policy alone"] - one["0"]["policy alone"] for one in runs]
        beam = [one[end]["with search"] - one[end]["policy alone"] for one in runs]
        table[loop] = {"alone, minus the start": report.estimate(alone), "search, minus alone": report.estimate(beam)}
        if loop != plain and plain in found:
            for name in ("policy alone", "with search"):
                pairs = zip(runs, found[plain], strict=True)
                gains = [one[end][name] - other[end][name] for one, other in pairs]
                table[loop][f"{name}, minus {plain}"] = report.estimate(gains)
    return table


PANELS = (
    report.Panel("policy alone", x="round", kind="curve"),
    report.Panel("with search", x="round", kind="curve"),
)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
