"""Labels of program steps: by mutating right programs (arXiv 2502.01715), or by completing a policy's prefixes?

Both label statements by running tests in the sandbox; they are compared at equal numbers of programs run. A small
network learns from the labels, and is tested on programs of the policy, of whose statements the truth is known. The
policy is the careless teacher of the task `programs`: it writes subtractions from an operand the wrong way round.

    python -m experiments.mutation_labels.main --out experiments/mutation_labels
"""

import ast
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl
from prm_jax.data import Problem, load_task
from prm_jax.data.programs import HEAD, ProgramsTask, operations
from prm_jax.prm.labelling.mutations import mutation_records

LINE = 12
CHARACTERS = "abcdx0123456789+-*/=%()return ps"


@dataclasses.dataclass(frozen=True)
class Config:
    """Labels, the network, and the test."""

    budgets: tuple[int, ...] = (60, 240, 960)  # programs run
    completions: int = 4
    mutations: int = 3
    refactors: int = 1
    hidden: int = 64
    updates: int = 300
    tested: int = 400
    seeds: int = 5


SMOKE = Config(budgets=(20,), updates=20, tested=20, seeds=1)

Labelled = tuple[str, str, float]
"""(operation, statement, label)."""


def written(problem: Problem, rng: np.random.Generator, kept: Sequence[str] = (), careless: float = 0.7) -> list[str]:
    """The policy's statements of a problem, after those that are given."""
    row = operations(problem)
    lines = list(kept)
    for index in range(len(lines), len(row)):
        left, sign, right = row[index]
        if index and right == "x" and rng.random() < careless:
            left, right = right, left
        lines.append(f"{'return ' if index == len(row) - 1 else 'x='}{left}{sign}{right}")
    return lines


def program(lines: Sequence[str]) -> str:
    """Statements as a function."""
    return HEAD + "".join(f"\n {line}" for line in lines) + "\n"


def by_mutation(config: Config, task: ProgramsTask, seed: int) -> list[tuple[int, list[Labelled]]]:
    """(programs run, labelled statements) of one problem after the other."""
    found, runs, number = [], 0, 0
    while runs < max(config.budgets):
        problem = task.train[seed * 10_000 + number]
        solution = program([line.strip() for line in task.solve(problem).splitlines()])
        solved = dataclasses.replace(problem, metadata={"solution": solution})
        records, count = mutation_records(
            task, [solved], {}, mutations=config.mutations, refactors=config.refactors, seed=seed, first_problem=number
        )
        names = ["".join(part) for part in operations(problem)]
        labelled = []
        for record in records:
            for name, step, label in zip(names, record.steps[1:], record.labels[1:], strict=False):
                labelled += [] if label is None else [(name, step, label)]
        runs, number = runs + count, number + 1
        found.append((runs, labelled))
    return found


def by_completion(config: Config, task: ProgramsTask, seed: int) -> dict[str, list[tuple[int, list[Labelled]]]]:
    """The same for statements of the policy, labelled by the success of its completions; each program is run once."""
    reductions = {"completions, any right": max, "completions, share right": np.mean}
    found: dict[str, list[tuple[int, list[Labelled]]]] = {name: [] for name in reductions}
    runs, number = 0, 0
    rng = np.random.default_rng((seed, 1))
    while runs < max(config.budgets):
        problem = task.train[seed * 10_000 + number]
        lines, names = written(problem, rng), ["".join(part) for part in operations(problem)]
        ends = range(1, len(lines) + 1)
        tried = [[program(written(problem, rng, lines[:end])) for _ in range(config.completions)] for end in ends]
        different = list(dict.fromkeys(text for texts in tried for text in texts))
        verdicts = task.verify_many([problem] * len(different), different)
        score = {text: verdict.score for text, verdict in zip(different, verdicts, strict=True)}
        runs, number = runs + len(different), number + 1
        for name, reduce in reductions.items():
            labels = [float(reduce([score[text] for text in texts])) for texts in tried]
            found[name].append((runs, list(zip(names, lines, labels, strict=True))))
    return found


def encode(labelled: Sequence[tuple[str, str]]) -> np.ndarray:
    """[N, D] one-hot characters of an operation and of a statement, brackets and white space normalised."""
    rows = np.zeros((len(labelled), 3 + LINE, len(CHARACTERS) + 1), np.float32)
    for index, (name, line) in enumerate(labelled):
        try:
            line = ast.unparse(ast.parse(f"{HEAD}\n {line.strip()}").body[0].body[0])  # type: ignore[attr-defined]
        except SyntaxError:
            pass
        for place, character in enumerate(name + line.replace(" ", "")[:LINE]):
            rows[index, place, CHARACTERS.find(character)] = 1.0
    return rows.reshape(len(labelled), -1)


def scores(params: list[jax.Array], x: jax.Array) -> jax.Array:
    """[N] logits."""
    return jnp.tanh(x @ params[0] + params[1]) @ params[2]


@functools.partial(jax.jit, static_argnames="updates")
def fit(params: list[jax.Array], x: jax.Array, labels: jax.Array, mask: jax.Array, updates: int) -> list[jax.Array]:
    """Full-batch Adam on the labels; rows off the mask do not count."""
    optimizer = optax.adamw(3e-3, weight_decay=0.01)

    def loss(params: list[jax.Array]) -> jax.Array:
        return rl.step_ce_loss(scores(params, x)[None], labels[None], mask[None]).mean()

    def one(carry: tuple[list[jax.Array], optax.OptState], _: None):
        params, state = carry
        changes, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, changes), state), None

    (params, _), _ = jax.lax.scan(one, (params, optimizer.init(params)), None, length=updates)
    return params


def tested(config: Config, task: ProgramsTask, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features [B, S, D], mask [B, S], first wrong statement [B]) of the policy's programs on evaluation problems."""
    rng = np.random.default_rng((seed, 2))
    features, mask, errors = [], np.zeros((config.tested, task.max_operations), bool), []
    for index in range(config.tested):
        problem = task.eval[index % len(task.eval)]
        lines = written(problem, rng)
        truth = task.step_labels(problem, "\n".join(f" {line}" for line in lines))
        errors.append(truth.index(False) if False in truth else -1)
        x = encode(list(zip(["".join(part) for part in operations(problem)], lines, strict=True)))
        features.append(np.pad(x, ((0, task.max_operations - len(x)), (0, 0))))
        mask[index, : len(lines)] = True
    return np.stack(features), mask, np.array(errors)


def run(config: Config) -> report.Tables:
    """F1 of the first wrong statement for each kind of label and number of programs run."""
    task = load_task("programs", reversals=0.5, num_eval=128)
    assert isinstance(task, ProgramsTask)
    found = []
    for seed in range(config.seeds):
        x, mask, errors = tested(config, task, seed)
        kinds = {"mutations": by_mutation(config, task, seed), **by_completion(config, task, seed)}
        table: dict[str, dict[str, float]] = {str(budget): {"programs run": budget} for budget in config.budgets}
        for kind, labelled in kinds.items():
            for budget in config.budgets:
                rows = [row for runs, own in labelled if runs <= budget for row in own]
                table[str(budget)][kind] = f1(config, seed, rows, x, mask, errors)
        found.append(table)
    task.verifier.close()
    return {"F1 of the first wrong statement, in percent": report.average(found)}


def f1(
    config: Config, seed: int, rows: Sequence[Labelled], x: np.ndarray, mask: np.ndarray, errors: np.ndarray
) -> float:
    """Trains on labels; the threshold is chosen on the first half of the test programs and used on the second."""
    if not rows:
        return 0.0
    size = 1 << (len(rows) - 1).bit_length()  # few shapes are compiled
    features = np.zeros((size, x.shape[-1]), np.float32)
    features[: len(rows)] = encode([row[:2] for row in rows])
    labels = np.zeros(size, np.float32)
    labels[: len(rows)] = [row[2] for row in rows]
    keys = jax.random.split(jax.random.key(seed), 2)
    params = [
        0.1 * jax.random.normal(keys[0], (x.shape[-1], config.hidden)), jnp.zeros(config.hidden),
        0.1 * jax.random.normal(keys[1], (config.hidden,)),
    ]  # fmt: skip
    params = fit(params, features, labels, np.arange(size) < len(rows), config.updates)
    found = scores(params, x)
    half = len(x) // 2
    threshold, _ = rl.best_threshold(found[:half], mask[:half], errors[:half])
    predicted = rl.first_error(found[half:], mask[half:], threshold=threshold)
    return 100 * float(rl.first_error_f1(predicted, errors[half:])["f1"])


PANELS = (report.Panel("F1 of the first wrong statement, in percent", x="programs run", kind="curve"),)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
