"""PRMs that have learned from the rollouts of two earlier runs, at every level that a policy passes through."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.credit.replicas import Team, train_replicas
from prm_jax import prm as prms
from prm_jax.data.problems import Task
from prm_jax.data.step_data import StepRecord, read_step_data, write_step_data
from prm_jax.prime.options import Options
from prm_jax.prime.responses import Responses
from prm_jax.prime.sources import PrefixValues

SEEDS = {"history": (601, 603), "history_2": (605, 607)}
"""Folder of the earlier runs -> their seeds."""
EVERY = 7
"""Of the earlier runs' batches every so manieth gets Monte-Carlo labels: 12 of 80 per run, 768 rollouts."""
COMPLETIONS = 4
KINDS: dict[str, Any] = {
    "implicit": prms.Implicit(),
    "outcomes": prms.Value(),
    "rollouts": prms.Value(),
    "exact": prms.Value(),
}
"""What a PRM learns -> its kind: an implicit PRM, and value models of outcomes, Monte-Carlo labels and exact labels."""


def history_prm(name: str, options: Sequence[Options], folder: pathlib.Path) -> pathlib.Path:
    """The directory of a PRM of the earlier runs, trained unless it is there.

    Args:
      name: a key of `KINDS`.
      options: of the earlier runs, which are made if they are not there.
      folder: of the earlier runs and of all PRMs.
    """
    path = folder / name
    if not (path / "result.json").is_file():
        data = _chosen(name, folder, options)
        few = name == "rollouts"
        prms.train(
            prms.TrainPRMOptions(
                text=prms.POLICY_LAYOUT, model=prms.BaseOptions(path=options[0].model.path), prm=KINDS[name],
                data=prms.DataOptions(max_length=96),
                train=prms.OptimizerOptions(
                    learning_rate=1e-3, batch_size=32 if few else 64, epochs=12 if few else 6
                ),
                seed=7, plots=False,
            ),
            path, data=data, resume=path.is_dir(),
        )  # fmt: skip
    return path / "model"


def _chosen(name: str, folder: pathlib.Path, options: Sequence[Options]) -> list[StepRecord]:
    """What a PRM learns from: all rollouts, those with Monte-Carlo labels, or groups with both outcomes."""
    file = folder / ("rollouts.jsonl" if name == "rollouts" else "history.jsonl")
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _earlier_runs(options, folder)
    records = list(read_step_data(file))
    if name in ("rollouts", "exact"):
        return records
    records = [dataclasses.replace(record, labels=None) for record in records]
    if name == "outcomes":
        return records
    found: dict[str, set[float | None]] = {}
    for record in records:
        found.setdefault(record.group, set()).add(record.outcome)
    return [record for record in records if len(found[record.group]) == 2]


def _earlier_runs(options: Sequence[Options], folder: pathlib.Path) -> None:
    """Trains outcome-only runs; writes their rollouts with exact labels, and some with Monte-Carlo labels."""
    seen: list[Sequence[Responses]] = []
    teams: list[Team] = []

    def watch(team: Team, responses: Sequence[Responses]) -> None:
        seen.append(responses)
        teams[:] = [team]

    curves = train_replicas(options, watch=watch)
    (team,) = teams
    records, labelled, completions = [], [], 0
    for index, run in enumerate(team.runs):
        task = run.start.task
        prover = jax.tree.map(lambda x, index=index: x[index], team.policy(team.state.policy, team.frozen.reference))
        source = PrefixValues(rollouts=COMPLETIONS, prover=prover, batch_size=256)
        for step, batch in enumerate(seen):
            own = list(_records(task, batch[index], f"{index}-{step}", None))
            records += own
            if step % EVERY == 0:
                observed = source.observe(batch[index], run.sampler, prover, jax.random.key(1000 * index + step))
                completions += observed.sampled
                labelled += _records(task, batch[index], f"{index}-{step}", observed.process)
    write_step_data(folder / "rollouts.jsonl", labelled)
    write_step_data(folder / "history.jsonl", records)
    facts = {"rollouts": len(records), "labelled": len(labelled), "completions": completions, "runs": curves}
    (folder / "history.json").write_text(json.dumps(facts) + "\n")


def _records(task: Task, responses: Responses, name: str, values: np.ndarray | None) -> Iterator[StepRecord]:
    """Step data of a batch; labels are values of prefixes [B, T], or whether all steps up to each are right."""
    size = responses.samples_per_prompt
    for row, text in enumerate(responses.texts):
        steps = tuple(text[start:end] for start, end in task.splitter(text))
        if not steps:
            continue
        problem = responses.problems[row // size]
        if values is None:
            right = task.step_labels(problem, text) or []
            labels = np.minimum.accumulate(np.asarray(right, float))
        else:
            ends = [np.flatnonzero(responses.step_ids[row] == number)[-1] for number in range(len(steps))]
            labels = values[row, ends]
        yield StepRecord(
            problem.prompt, steps, tuple(map(float, labels)), float(responses.outcome[row]), f"{name}-{row // size}",
            f"{name}-{row}", {"finished": bool(responses.finished[row])},
        )  # fmt: skip
