"""Outcomes or Monte-Carlo step labels? Implicit reward models against an explicit one, at equal rollouts.

The policy is the careless teacher of the carry task, who drops carries and goes on from the wrong total; every step's
truth is known. A small model is first trained on his solutions; every reward model starts as a copy of it. Implicit
models (arXiv 2412.01981) see solutions with outcomes. The explicit model classifies steps by Monte-Carlo labels: the
teacher finishes each prefix `completions` times, and a step's label is the share of right answers (arXiv 2312.08935).
"equal rollouts" gives it as many solutions as that leaves of the same number of rollouts; "equal solutions" gives it
all solutions, and pays for their labels on top. Updates and batch size are the same for all arms.

    python -m experiments.prm_kinds.main
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments import report
from prm_jax.data.carry import CarryTask, operands
from prm_jax.data.problems import Problem
from prm_jax.data.step_data import StepRecord
from prm_jax.models import ModelConfig, init_params
from prm_jax.training.learner import make_optimizer
from prm_jax.training.options import SFTOptions
from prm_jax.training.prm.cases import case_of
from prm_jax.training.prm.data import batch_of, make_plan, select
from prm_jax.training.prm.forward import Spec
from prm_jax.training.prm.judge import process_bench, step_quality
from prm_jax.training.prm.judge_selection import best_of_n
from prm_jax.training.prm.kinds import KINDS, needs_groups
from prm_jax.training.prm.model import finished
from prm_jax.training.prm.options import KindOptions, TextLayout
from prm_jax.training.prm.rows import build_rows, through_first_error
from prm_jax.training.prm.score import score_solutions
from prm_jax.training.prm.step import PRMLearner, make_step
from prm_jax.training.sft import train_sft

LAYOUT = TextLayout(separator="", end=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of task, model and data."""

    min_operands: int = 3
    max_operands: int = 5
    hidden: int = 64
    layers: int = 3
    sft_steps: int = 700
    problems: int = 256
    solutions: int = 8  # of each problem, with outcomes
    completions: int = 8  # of each prefix, for Monte-Carlo labels
    eval_problems: int = 128
    eval_solutions: int = 16
    updates: int = 150
    batch_size: int = 128
    learning_rate: float = 1e-3
    arms: tuple[str, ...] = ()  # all of them when empty
    seeds: int = 5


SMOKE = Config(
    min_operands=2, max_operands=3, hidden=16, layers=1, sft_steps=20, problems=12, solutions=4, completions=2,
    eval_problems=12, eval_solutions=4, updates=6, batch_size=16, arms=("implicit, ce", "explicit, equal rollouts"),
    seeds=1,
)  # fmt: skip


def finish(row: Sequence[int], total: int, after: int, drop_carry: float, rng: np.random.Generator) -> int:
    """The teacher's answer when he goes on from a written total after `after` additions."""
    for operand in row[after + 1 :]:
        slip = total % 10 + operand >= 10 and rng.random() < drop_carry
        total += operand - 10 * slip
    return total


def monte_carlo(
    task: CarryTask, problem: Problem, steps: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[float, ...]:
    """Share of right answers among `count` completions after each step; after the answer, whether it is right."""
    row = operands(problem)
    labels = []
    for index, step in enumerate(steps):
        if "#" in step:
            labels.append(float(step.lstrip("#") == problem.answer))
            continue
        total = int(step.rstrip(";").rpartition("=")[2])
        ends = [finish(row, total, index + 1, task.drop_carry, rng) for _ in range(count)]
        labels.append(float(np.mean([str(end) == problem.answer for end in ends])))
    return tuple(labels)


def write(task: CarryTask, problems: Sequence[Problem], count: int, rng: np.random.Generator) -> list[StepRecord]:
    """`count` solutions of each problem with outcomes and the truth of every step."""
    records = []
    for problem in problems:
        for index in range(count):
            text = task.demonstration(problem, rng)
            steps = tuple(text[start:end] for start, end in task.splitter(text))
            truth = tuple(map(float, task.step_labels(problem, text)))
            name = f"{problem.id}/{index}"
            records.append(StepRecord(problem.prompt, steps, truth, task.verify(problem, text), problem.id, name))
    return records


def start_model(config: Config, task: CarryTask, seed: int) -> tuple[ModelConfig, dict]:
    """A small model after supervised training on the teacher's solutions."""
    tokenizer = task.tokenizer()
    model = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=config.hidden, intermediate_size=3 * config.hidden,
        num_layers=config.layers, num_heads=2, num_kv_heads=2, head_dim=config.hidden // 2, scan_unroll=config.layers,
    )  # fmt: skip
    width = task.max_prompt_tokens + task.max_response_tokens + 1

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, step))
        tokens, mask = np.zeros((64, width), np.int32), np.zeros((64, width), bool)
        for row, (prompt, response) in enumerate(task.demonstrations(rng, 64)):
            before = tokenizer.encode(prompt, add_special=True)
            after = [*tokenizer.encode(response), tokenizer.eos_id]
            tokens[row, : len(before) + len(after)] = [*before, *after]
            mask[row, len(before) : len(before) + len(after)] = True
        return tokens, mask

    params = init_params(model, jax.random.key(seed))
    return model, train_sft(model, params, batches, SFTOptions(steps=config.sft_steps))


def arms(
    config: Config, task: CarryTask, records: Sequence[StepRecord], problems: dict[str, Problem], seed: int
) -> dict[str, tuple[KindOptions, Callable[[], list[StepRecord]], int]]:
    """Name -> (kind, data, rollouts in all)."""
    rng = np.random.default_rng((seed, 1))
    prefixes = [len(record.steps) - 1 for record in records]
    cost = np.cumsum([1 + config.completions * prefix for prefix in prefixes])
    affordable = max(1, int(np.searchsorted(cost, len(records), side="right")))
    # Spread over the problems rather than all solutions of a few.
    spread = np.random.default_rng((seed, 2)).permutation(len(records))[:affordable]

    def labelled(chosen: Sequence[int]) -> list[StepRecord]:
        return [
            dataclasses.replace(
                records[i],
                labels=monte_carlo(task, problems[records[i].group], records[i].steps, config.completions, rng),
            )
            for i in chosen
        ]

    token = KindOptions("token", labels="hard", label_threshold=0.0)
    found = {
        f"implicit, {loss}": (KindOptions(loss=loss), lambda: list(records), len(records))
        for loss in ("ce", "dpo", "nca", "kto_vanilla")
    }
    found["explicit, equal rollouts"] = (token, lambda: labelled(spread.tolist()), len(records))
    found["explicit, equal solutions"] = (token, lambda: labelled(range(len(records))), int(cost[-1]))
    found["explicit, exact labels"] = (KindOptions("token"), lambda: list(records), len(records))
    return {name: arm for name, arm in found.items() if not config.arms or name in config.arms}


def train(config: Config, spec: Spec, base: dict, records: Sequence[StepRecord], task: CarryTask, seed: int):
    """One reward model."""
    kind, tokenizer = KINDS[spec.options.kind], task.tokenizer()
    rows, info = build_rows(records, tokenizer, LAYOUT, max_length=128)
    if spec.options.kind == "token":
        rows = [through_first_error(row, threshold=1e-6 if spec.options.labels == "hard" else 0.5) for row in rows]
    rows = select(rows, "groups" if needs_groups(spec) else kind.needs, info)
    size = max(config.batch_size, config.solutions)
    epochs = -(-config.updates // max(1, len(rows) // size))
    plan = make_plan(rows, batch_size=size, epochs=epochs, seed=seed, whole_groups=needs_groups(spec))
    learner = PRMLearner(spec, make_optimizer(config.learning_rate, warmup_steps=5))
    state, step = learner.init(base, jax.random.key(seed)), make_step(learner)
    for number in range(min(config.updates, plan.steps)):
        state, _ = step(state, base, batch_of(plan, rows, number), None)
    return finished(spec, learner.weights(state.trainable, state.fixed, base), tokenizer, LAYOUT)


def one_seed(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Every arm of one seed: same start, same solutions."""
    task = CarryTask(
        config.min_operands, config.max_operands, num_train=1 << 14, num_eval=config.eval_problems, seed=seed
    )
    model, base = start_model(config, task, seed)
    rng = np.random.default_rng((seed, 3))
    problems = {problem.id: problem for problem in (task.train[i] for i in range(config.problems))}
    records = write(task, list(problems.values()), config.solutions, rng)
    held_out = write(task, task.eval, config.eval_solutions, rng)
    table = {}
    for name, (options, data, rollouts) in arms(config, task, records, problems, seed).items():
        prm = train(config, Spec(options, model), base, data(), task, seed)
        how = "last" if options.kind == "token" else "sum"
        cases = [case_of(one) for one in score_solutions(prm, held_out, aggregate=how)]
        # Half of the problems choose the threshold, the other half are judged.
        half = {problem.id for problem in task.eval[::2]}
        picks, tests = [c for c in cases if c.group in half], [c for c in cases if c.group not in half]
        bench = process_bench({"picks": picks, "tests": tests}, threshold_on="picks", resamples=0)
        best = best_of_n(tests, output="score")
        table[name] = {
            "rollouts": float(rollouts),
            "step AUC": step_quality(tests)["auc_to_first_error"],
            "first-error F1": bench["subsets"]["tests"]["f1"],
            f"best of {config.eval_solutions}": best["accuracy"]["as_scored"][-1],
            "one solution": best["random"][0],
        }
    return table


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    return {"reward models on held-out solutions": report.average([one_seed(config, s) for s in range(config.seeds)])}


if __name__ == "__main__":
    report.main(
        run, Config(), SMOKE, [report.Panel("reward models on held-out solutions", ("step AUC", "first-error F1"))]
    )
