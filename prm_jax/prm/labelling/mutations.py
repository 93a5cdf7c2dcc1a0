"""Labels for the steps of programs by editing right solutions and running the tests (PRLCoder, arXiv 2502.01715)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.data.program_edits import Edit, edits_of_statement, find_edits
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError


def mutation_records(
    task: Any,
    problems: Sequence[Any],
    told: Mapping[str, Any],
    *,
    mutations: int,
    refactors: int,
    seed: int,
    first_problem: int = 0,
) -> tuple[list[StepRecord], int]:
    """Records of edited solutions.

    Each edit changes one step. Where the edited program still passes, every step is right; where it fails, the steps
    before the edit are right, the edited one is wrong, and nothing is known about those after it. The solution itself
    is a record, too, and a problem whose solution fails is left out.

    Args:
      task: verifies programs; its splitter cuts them.
      problems: with ``metadata["solution"]``, a right program.
      told: provenance that all records share.
      mutations, refactors: edits of each kind per problem, drawn over steps first, so that long lines do not dominate.
      seed: of the drawing.
      first_problem: number of the first of `problems`, so that a division of the work changes nothing.

    Returns:
      (records, number of programs run).

    Raises:
      UserError: no problem has a solution.
    """
    solved = [(number, problem) for number, problem in enumerate(problems) if problem.metadata.get("solution")]
    if not solved:
        raise UserError(
            "none of these problems has a solution to edit: --method mutate needs a task whose rows have one, such as "
            "--task code with files of the formats humaneval, mbpp or apps"
        )
    jobs: list[tuple[int, Any, str, int, Edit | None]] = []
    for number, problem in solved:
        solution = str(problem.metadata["solution"])
        rng = np.random.default_rng((seed, first_problem + number))
        jobs.append((number, problem, solution, -1, None))
        for kind, count in (("mutate", mutations), ("refactor", refactors)):
            for step, edit in _draw(task, solution, kind, count, rng):
                jobs.append((number, problem, edit.apply(solution), step, edit))
    verdicts = task.verify_many([job[1] for job in jobs], [job[2] for job in jobs])
    right = {job[0] for job, verdict in zip(jobs, verdicts, strict=True) if job[4] is None and verdict.status == "pass"}
    records = []
    for index, (job, verdict) in enumerate(zip(jobs, verdicts, strict=True)):
        number, problem, program, step, made = job
        if number not in right or not verdict.usable:
            continue
        steps = tuple(program[start:end] for start, end in task.splitter(program))
        passes = verdict.status == "pass"
        labels = [1.0] * len(steps) if passes else [1.0] * step + [0.0] + [None] * (len(steps) - step - 1)
        if len(labels) != len(steps):  # the edit moved the boundaries of steps
            continue
        kind = "solution" if made is None else made.kind
        more = {} if made is None else {"edit": kind, "step": step, "detail": verdict.detail[:200]}
        records.append(
            StepRecord(
                prompt=problem.prompt,
                steps=steps,
                labels=tuple(labels),
                outcome=float(passes),
                group=problem.id,
                id=f"{problem.id}/{kind}/{index}",
                provenance={**told, **more},
            )  # fmt: skip
        )
    return records, len(jobs)


def _draw(task: Any, solution: str, kind: str, count: int, rng: np.random.Generator) -> list[tuple[int, Edit]]:
    """Up to `count` edits of one kind: steps in random order, one edit of each before a second of any."""
    by_step: dict[int, list[Edit]] = {}
    edits = [edit for edit in find_edits(solution) if edit.kind == kind]
    for step, edit in edits_of_statement(edits, list(task.splitter(solution))):
        by_step.setdefault(step, []).append(edit)
    order = {step: [found[i] for i in rng.permutation(len(found))] for step, found in sorted(by_step.items())}
    chosen: list[tuple[int, Edit]] = []
    while len(chosen) < count and order:
        for step in [list(order)[i] for i in rng.permutation(len(order))]:
            chosen.append((step, order[step].pop()))
            if not order[step]:
                del order[step]
    return chosen[:count]
