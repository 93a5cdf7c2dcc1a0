"""Outcomes or Monte-Carlo step labels? Implicit reward models against an explicit one, at equal rollouts and compute.

The policy is the careless teacher of the carry task, who drops carries and goes on from the wrong total; every step's
truth is known. A small model is first trained on his solutions; every reward model starts as a copy of it. Implicit
models (arXiv 2412.01981) see solutions with outcomes. The explicit model classifies steps by Monte-Carlo labels: the
teacher finishes each prefix `completions` times, and a step's label is whether any answer is right (arXiv 2312.08935).
"equal rollouts" gives it as many solutions as that leaves of the same number of rollouts; "all labelled" gives it all
solutions and pays for the labels with updates; "labels for nothing" gives it the labels on top.

Compute is counted in forward passes of one token through the small model: 1 for a token that is sampled, 3 for one
that is learned from, 1 more where a reference reads it too. Every arm spends the same total, rollouts and learning
together. Half way and at the end the model's step AUC is taken on half of the held-out problems; the better of the two
is judged on the other half. A solution's score is the sum of an implicit model's steps, the least of an explicit one's.

    python -m experiments.prm_kinds.main
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax.data.carry import CarryTask, operands
from prm_jax.data.problems import Problem
from prm_jax.data.step_data import StepRecord
from prm_jax.models import ModelConfig, init_params
from prm_jax.prime.warm_start import make_sft_step
from prm_jax.prm.cases import Case, case_of
from prm_jax.prm.data import batch_of, make_plan, select, stack
from prm_jax.prm.judge import process_bench, step_quality
from prm_jax.prm.judge_selection import best_of_n
from prm_jax.prm.kinds import Implicit, Token
from prm_jax.prm.model import finished
from prm_jax.prm.reward_model_options import Aggregate, TextLayout
from prm_jax.prm.rows import Row, build_rows, through_first_error
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Kind, Spec
from prm_jax.prm.step import PRMLearner, make_step
from prm_jax.runs import Learner, make_optimizer

LAYOUT = TextLayout(separator="", end=True)
BASE, HELD_OUT = "implicit, ce", "reward models on held-out solutions"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of task, model and data."""

    min_operands: int = 3
    max_operands: int = 5
    hidden: int = 48
    layers: int = 2
    sft_steps: int = 400
    problems: int = 128
    solutions: int = 8  # of each problem, with outcomes
    completions: int = 8  # of each prefix, for Monte-Carlo labels
    eval_problems: int = 64
    eval_solutions: int = 16
    updates: int = 40  # of the implicit model by cross-entropy; the others get what costs as much
    batch_size: int = 128
    learning_rate: float = 1e-3
    arms: tuple[str, ...] = ()  # all of them when empty
    seeds: int = 5
    kept: str = "runs/prm_kinds"  # finished seeds, which are not run again


SMOKE = Config(
    min_operands=2, max_operands=3, hidden=16, layers=1, sft_steps=20, problems=12, solutions=4, completions=2,
    eval_problems=12, eval_solutions=4, updates=6, batch_size=16, arms=("implicit, ce", "explicit, equal rollouts"),
    seeds=1, kept="",
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

    steps = config.sft_steps
    optimizer = make_optimizer(
        5e-3, schedule="cosine", warmup_steps=max(1, round(0.05 * steps)), total_steps=steps, beta2=0.95
    )
    learner = Learner(model, optimizer)
    params, opt_state = learner.init(init_params(model, jax.random.key(seed)), jax.random.key(0))
    sft_step = make_sft_step(learner)
    for step in range(steps):
        tokens, mask = map(jnp.asarray, batches(step))
        params, opt_state, _ = sft_step(params, opt_state, None, tokens, mask)
    return model, params


@dataclasses.dataclass(frozen=True)
class Arm:
    """A kind of reward model and what it learns from.

    Attributes:
      kind: with its options.
      records: what it learns from.
      rollouts: that were sampled for it.
      sampled: their tokens, as far as the arm pays for them.
    """

    kind: Kind
    records: Callable[[], list[StepRecord]]
    rollouts: int
    sampled: int


def arms(
    config: Config, task: CarryTask, records: Sequence[StepRecord], problems: dict[str, Problem], seed: int
) -> dict[str, Arm]:
    """All that are compared, by name."""
    rng = np.random.default_rng((seed, 1))
    # Rollouts and their tokens: the solution itself, and `completions` continuations of each of its prefixes.
    rollouts = np.asarray([1 + config.completions * (len(record.steps) - 1) for record in records])
    own = np.asarray([sum(map(len, record.steps)) + 1 for record in records])
    rest = [sum(sum(map(len, record.steps[cut:])) + 1 for cut in range(1, len(record.steps))) for record in records]
    paid = own + config.completions * np.asarray(rest)
    # Spread over the problems rather than all solutions of a few.
    spread = np.random.default_rng((seed, 2)).permutation(len(records))
    few = spread[: max(1, int(np.searchsorted(rollouts[spread].cumsum(), len(records), side="right")))]

    def labelled(chosen: Sequence[int]) -> list[StepRecord]:
        return [
            dataclasses.replace(
                records[i],
                labels=monte_carlo(task, problems[records[i].group], records[i].steps, config.completions, rng),
            )
            for i in chosen
        ]

    def outcomes() -> list[StepRecord]:
        return list(records)

    def everything() -> list[StepRecord]:
        return labelled(range(len(records)))

    token, count, tokens = Token(labels="hard", label_threshold=0.0), len(records), int(own.sum())
    found = {
        f"implicit, {loss}": Arm(Implicit(loss=loss), outcomes, count, tokens)
        for loss in ("ce", "dpo", "nca", "kto", "kto_vanilla")
    }
    found["explicit, equal rollouts"] = Arm(
        token, lambda: labelled(few.tolist()), int(rollouts[few].sum()), int(paid[few].sum())
    )
    found["explicit, all labelled"] = Arm(token, everything, int(rollouts.sum()), int(paid.sum()))
    found["explicit, labels for nothing"] = Arm(token, everything, int(rollouts.sum()), tokens)
    found["explicit, exact labels"] = Arm(Token(), outcomes, count, tokens)
    return {name: arm for name, arm in found.items() if not config.arms or name in config.arms}


def cost_of_learning(kind: Kind) -> int:
    """Forward passes a token: 3 to learn, 1 in the reference, 2 behind another prompt for KTO's reference point."""
    if not isinstance(kind, Implicit):
        return 3
    return 6 if kind.loss == "kto" else 4


def train(
    config: Config, spec: Spec, base: dict, rows: Sequence[Row], task: CarryTask, seed: int, compute: float
) -> Iterator[tuple[float, PRM]]:
    """One reward model after half and after all of its compute, each beside what was spent so far."""
    size = max(config.batch_size, config.solutions)
    unit = cost_of_learning(spec.kind)
    lengths = np.asarray([len(row.tokens) for row in rows])
    epochs = 1 + int(np.ceil(compute / (unit * lengths.sum())))
    plan = make_plan(rows, batch_size=size, epochs=epochs, seed=seed, whole_groups=spec.kind.whole_groups)
    # Rows in eights: fewer shapes to compile.
    plan = dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, rows=-(-plan.shape.rows // 8) * 8))
    learner = PRMLearner(spec, make_optimizer(config.learning_rate, warmup_steps=5))
    state, step = learner.init(base, jax.random.key(seed)), make_step(learner)
    spent, marks = 0.0, [compute / 2, compute]
    for number in range(plan.steps):
        members = plan.microbatches(number)[0]
        extra = spec.kind.extra_batch([rows[i] for i in members], plan.shape)
        other = None if extra is None else stack([extra])
        state, _ = step(state, base, batch_of(plan, rows, number), other)
        spent += unit * lengths[members].sum()
        if spent >= marks[0]:
            weights = learner.weights(state.trainable, state.fixed, base)
            yield spent, finished(spec, weights, task.tokenizer(), LAYOUT)
            marks = [mark for mark in marks if mark > spent]
            if not marks:
                return


def rows_of(spec: Spec, records: Sequence[StepRecord], task: CarryTask) -> list[Row]:
    """What the loss learns from."""
    rows, info = build_rows(records, task.tokenizer(), LAYOUT, max_length=128)
    if isinstance(spec.kind, Token):
        rows = [through_first_error(row, threshold=1e-6 if spec.kind.labels == "hard" else 0.5) for row in rows]
    return select(rows, spec.kind.needs, info)


def one_seed(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Every arm of one seed: same start, same solutions, same compute."""
    task = CarryTask(
        config.min_operands, config.max_operands, num_train=1 << 14, num_eval=config.eval_problems, seed=seed
    )
    model, base = start_model(config, task, seed)
    rng = np.random.default_rng((seed, 3))
    problems = {problem.id: problem for problem in (task.train[i] for i in range(config.problems))}
    records = write(task, list(problems.values()), config.solutions, rng)
    held_out = write(task, task.eval, config.eval_solutions, rng)
    # Half of the problems choose threshold and moment, the other half are judged.
    half = {problem.id for problem in task.eval[::2]}
    everything = arms(config, task, records, problems, seed)
    plain = rows_of(Spec(Implicit(), model), records, task)
    a_batch = config.batch_size * float(np.mean([len(row.tokens) for row in plain]))
    total = sum(sum(map(len, record.steps)) + 1 for record in records) + config.updates * 4 * a_batch
    table = {}
    for name, arm in everything.items():
        began, best = time.perf_counter(), None
        spec = Spec(arm.kind, model)
        how: Aggregate = "min" if isinstance(arm.kind, Token) else "sum"
        rows, compute = rows_of(spec, arm.records(), task), total - arm.sampled
        for spent, prm in train(config, spec, base, rows, task, seed, compute):
            cases = [case_of(one) for one in score_solutions(prm, held_out, aggregate=how)]
            picks, tests = [c for c in cases if c.group in half], [c for c in cases if c.group not in half]
            auc = step_quality(picks)["auc_to_first_error"]
            if best is None or auc > best[0]:
                best = auc, spent, picks, tests
        assert best is not None
        table[name] = {
            "rollouts": float(arm.rollouts),
            "compute": (arm.sampled + spent) / 1e6,
            "taken at": best[1] / spent,
            **judged(config, best[2], best[3]),
        }
        shown = ", ".join(f"{column} {value:.3f}" for column, value in table[name].items())
        print(f"seed {seed}, {name}: {shown} ({time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
    return table


def judged(config: Config, picks: Sequence[Case], tests: Sequence[Case]) -> dict[str, float]:
    """What the scores of `tests` are worth; `picks` choose the threshold."""
    bench = process_bench({"picks": picks, "tests": tests}, threshold_on="picks", resamples=0)
    best = best_of_n(tests, output="score")
    return {
        "step AUC": step_quality(tests)["auc_to_first_error"],
        "first-error F1": bench["subsets"]["tests"]["f1"],
        f"best of {config.eval_solutions}": best["accuracy"]["as_scored"][-1],
        "one solution": best["random"][0],
    }


def run(config: Config) -> report.Tables:
    """See the module's docstring."""
    piece = dataclasses.replace(config, seeds=1, kept="")
    return summary(
        config,
        [
            report.kept(config.kept, piece, f"seed{seed}", lambda s=seed: one_seed(piece, s))
            for seed in range(config.seeds)
        ],
    )


def summary(config: Config, found: Sequence[report.Table]) -> report.Tables:
    """Means over seeds, and differences to the implicit model by cross-entropy seed by seed."""
    quality = ("step AUC", "first-error F1", f"best of {config.eval_solutions}")
    differences = {
        name: {column: report.estimate([one[name][column] - one[BASE][column] for one in found]) for column in quality}
        for name in found[0]
        if name != BASE
    }
    return {HELD_OUT: report.average(found), f"difference to '{BASE}'": differences}


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, [report.Panel(HELD_OUT, ("step AUC", "first-error F1", "best of 16"))])
