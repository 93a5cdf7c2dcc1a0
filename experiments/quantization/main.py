"""What few bits cost a process reward model: the error of its rewards, and what they are worth.

An implicit reward model learns the carry task from outcomes (see experiments/prm_kinds). Its weights and its
reference's are then rounded in every form of ``methods``, each model on its own, and score held-out solutions: the
error of token rewards, beta times the log-ratio, is compared with the rewards' own size. "mismatch" is the divergence
(nats per token) of the start model from itself in that form, on its own samples, as a sampler in few bits would have.
Numbers are computed with expanded weights, which the packed products equal up to float rounding.

The second table trains adapters on a base that is in few bits already, which is the reference as well.

    python -m experiments.quantization.main --out experiments/quantization

Tables of finished seeds are stored under `--kept`, and read from there by a second call with the same settings.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.prm_kinds import main as kinds
from experiments.quantization.methods import bits_per_weight, methods
from prm_jax import rl
from prm_jax.data.carry import CarryTask
from prm_jax.data.step_data import StepRecord
from prm_jax.models import (
    LoRAConfig,
    ModelConfig,
    dequantized,
    generate,
    quantize,
    token_logprobs,
)
from prm_jax.models.transformer import Params
from prm_jax.prm.cases import case_of
from prm_jax.prm.data import batch_of, make_plan
from prm_jax.prm.judge import process_bench, step_quality
from prm_jax.prm.kinds import Implicit
from prm_jax.prm.model import finished
from prm_jax.prm.rows import build_rows
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec
from prm_jax.prm.step import PRMLearner, make_step
from prm_jax.runs import make_optimizer

ALONE, ADAPTERS = "a trained reward model, rounded", "adapters trained on a rounded base"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of task, model and data."""

    min_operands: int = 3
    max_operands: int = 5
    hidden: int = 64
    layers: int = 2
    sft_steps: int = 400
    problems: int = 128
    solutions: int = 8
    eval_problems: int = 64
    eval_solutions: int = 8
    updates: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    rank: int = 4
    forms: tuple[str, ...] = ()  # all of them when empty
    adapters: tuple[str, ...] = ("int8", "int4, groups", "int2, groups, five levels")
    seeds: int = 3
    kept: str = "runs/quantization"  # directory of finished seeds; none are stored when empty


SMOKE = Config(
    min_operands=2, max_operands=3, hidden=32, layers=1, sft_steps=20, problems=8, solutions=4, eval_problems=8,
    eval_solutions=4, updates=4, batch_size=16, forms=("int4",), adapters=("int8",), seeds=1, kept="",
)  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def logprobs(model: ModelConfig, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """``token_logprobs``, compiled."""
    return token_logprobs(model, params, tokens, mask)


def train_prm(
    config: Config, model: ModelConfig, base: Params, records: Sequence[StepRecord], task: CarryTask, seed: int,
    lora: LoRAConfig | None = None,
) -> PRM:  # fmt: skip
    """An implicit reward model by cross-entropy on outcomes; all weights, or adapters on a base that stays frozen."""
    spec = Spec(Implicit(reference="base"), model)
    rows = kinds.rows_of(spec, records, task)
    plan = make_plan(rows, batch_size=config.batch_size, epochs=config.updates, seed=seed)
    rate = config.learning_rate * (3 if lora else 1)
    learner = PRMLearner(spec, make_optimizer(rate, warmup_steps=5), lora)
    state, step = learner.init(base, jax.random.key(seed)), make_step(learner)
    for number in range(config.updates):
        state, _ = step(state, base, batch_of(plan, rows, number), None)
    return finished(spec, learner.weights(state.trainable, state.fixed, base), task.tokenizer(), kinds.LAYOUT)


def judged(prm: PRM, held_out: Sequence[StepRecord], half: set[str]) -> dict[str, float]:
    """What the scores are worth on the problems outside `half`, which chooses the threshold."""
    scored = score_solutions(prm, held_out, aggregate="sum")
    cases = [case_of(one) for one in scored]
    picks, tests = [c for c in cases if c.group in half], [c for c in cases if c.group not in half]
    bench = process_bench({"picks": picks, "tests": tests}, threshold_on="picks", resamples=0)
    groups = {name: number for number, name in enumerate(dict.fromkeys(one.record.group for one in scored))}
    accuracy = rl.pairwise_accuracy(
        jnp.array([one.response for one in scored]), jnp.array([one.record.outcome for one in scored], jnp.float32),
        jnp.array([groups[one.record.group] for one in scored]), num_groups=len(groups),
    )  # fmt: skip
    return {
        "step AUC": step_quality(tests)["auc_to_first_error"],
        "first-error F1": bench["subsets"]["tests"]["f1"],
        "pairwise accuracy": float(accuracy),
    }


def rows_as_arrays(records: Sequence[StepRecord], task: CarryTask) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, T], mask [B, T] of the solutions' tokens), right-padded."""
    rows, _ = build_rows(records, task.tokenizer(), kinds.LAYOUT, max_length=128)
    tokens = np.zeros((len(rows), max(len(row.tokens) for row in rows)), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)] = row.tokens
        mask[place, : len(row.tokens)] = row.step_ids >= 0
    return tokens, mask


def sampled(model: ModelConfig, base: Params, task: CarryTask, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask of the response) of the start model's own samples."""
    tokenizer = task.tokenizer()
    prompts = [tokenizer.encode(problem.prompt, add_special=True) for problem in task.eval[: config.eval_problems]]
    drawn = generate(model, base, prompts, jax.random.key(0), samples_per_prompt=4, max_new_tokens=24)
    width = max(map(len, prompts))
    tokens = np.zeros((4 * len(prompts), width + 24), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row in range(len(tokens)):
        prompt, own = prompts[row // 4], np.asarray(drawn.mask[row])
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + own.sum()] = np.asarray(drawn.tokens[row])[own]
        mask[row, len(prompt) : len(prompt) + own.sum()] = True
    return tokens, mask


def one_seed(config: Config, seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Both tables of a seed."""
    task = CarryTask(
        config.min_operands, config.max_operands, num_train=1 << 14, num_eval=config.eval_problems, seed=seed
    )
    model, base = kinds.start_model(_sizes(config), task, seed)
    rng = np.random.default_rng((seed, 3))
    records = kinds.write(task, [task.train[i] for i in range(config.problems)], config.solutions, rng)
    held_out = kinds.write(task, task.eval, config.eval_solutions, rng)
    half = {problem.id for problem in task.eval[::2]}
    prm = train_prm(config, model, base, records, task, seed)
    beta = prm.spec.kind.beta  # type: ignore[attr-defined]
    judge = functools.partial(judged, held_out=held_out, half=half)
    read, own = rows_as_arrays(held_out, task), sampled(model, base, task, config)
    everything = methods(config.rank)

    def rewards(one: PRM) -> np.ndarray:
        logp, reference = (np.asarray(logprobs(model, w, *read)) for w in (one.weights.model, one.weights.reference))
        return beta * (logp - reference)[read[1]]

    exact, own_logp = rewards(prm), np.asarray(logprobs(model, base, *own))[own[1]]
    size = float(np.sqrt(np.mean(exact**2)))
    table = {"float32": {"bits a weight": 32.0, "reward error": 0.0, "share of rewards": 0.0, "mismatch": 0.0,
                         **judge(prm)}}  # fmt: skip
    _tell(seed, "float32", table["float32"])
    for name, form in everything.items():
        if config.forms and name not in config.forms:
            continue
        packed = [quantize(model, w, **form) for w in (prm.weights.model, prm.weights.reference)]
        few = [dequantized(w) for w in packed]
        rounded = dataclasses.replace(prm, weights=dataclasses.replace(prm.weights, model=few[0], reference=few[1]))
        error = float(np.sqrt(np.mean((rewards(rounded) - exact) ** 2)))
        start = dequantized(quantize(model, base, **form))
        table[name] = {
            "bits a weight": bits_per_weight(packed[0]),
            "reward error": error,
            "share of rewards": error / size,
            "mismatch": float((own_logp - np.asarray(logprobs(model, start, *own))[own[1]]).mean()),
            **judge(rounded),
        }
        _tell(seed, name, table[name])
    trained = {}
    for name in ("float32", *config.adapters):
        frozen = base if name == "float32" else quantize(model, base, **everything[name])
        lora = LoRAConfig(rank=2 * config.rank, alpha=model.lora_alpha)
        trained[name] = judge(train_prm(config, model, frozen, records, task, seed, lora))
        _tell(seed, f"adapters on {name}", trained[name])
    return table, trained


def kept_seed(config: Config, seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """`one_seed`, or what it found before with the same settings."""
    settings = dataclasses.asdict(dataclasses.replace(config, seeds=0, kept=""))
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    path = pathlib.Path(config.kept) / f"rewards-{name}-seed{seed}.json"
    if config.kept and path.is_file():
        table, trained = json.loads(path.read_text())
        return table, trained
    found = one_seed(config, seed)
    if config.kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _sizes(config: Config) -> kinds.Config:
    """What the start model needs."""
    return dataclasses.replace(
        kinds.Config(), hidden=config.hidden, layers=config.layers, sft_steps=config.sft_steps
    )  # fmt: skip


def _tell(seed: int, name: str, row: dict[str, float]) -> None:
    print(f"seed {seed}, {name}: {', '.join(f'{k} {v:.4g}' for k, v in row.items())}", file=sys.stderr, flush=True)


def run(config: Config) -> report.Tables:
    """See the module's docstring."""
    found = [kept_seed(config, seed) for seed in range(config.seeds)]
    tables: dict[str, Any] = {
        ALONE: report.average([table for table, _ in found]),
        ADAPTERS: report.average([table for _, table in found]),
    }
    return tables


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, [
        report.Panel(ALONE, ("share of rewards",), log=True), report.Panel(ALONE, ("step AUC", "pairwise accuracy")),
    ])  # fmt: skip
