"""A reward model that calls a calculator while it judges, and one that does not (Themis, arXiv 2310.01045).

    python -m experiments.tool_judge.main --out experiments/tool_judge

Products are claimed rightly and wrongly. `prm-jax train-prm --prm.kind themis` learns from pairs with traces that call
the calculator, and from the same pairs without calls; on new products each writes its own trace, then scores.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from experiments import report
from experiments.arms import folder_of, run_folder
from prm_jax import prm
from prm_jax.data.step_data import StepRecord
from prm_jax.models import CharTokenizer, ModelConfig, init_params, save_weights
from prm_jax.prm.kinds import Themis
from prm_jax.prm.reward_model_options import BaseOptions, DataOptions, OptimizerOptions
from prm_jax.prm.tool_traces import write_traces
from prm_jax.prm.train_options import TrainPRMOptions
from prm_jax.verifiers import make_tool

ALPHABET = "0123456789*<=>[]{}yn"
MARKERS = ("[", "]", "{", "}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Data and training."""

    digits: int = 3
    pairs: int = 16000
    tested: int = 256
    learning_rate: float = 2e-3
    runs: str = "runs/tool_judge"
    seeds: int = 5


SMOKE = Config(digits=2, pairs=16, tested=4, runs="", seeds=1)
ARMS = {"with the calculator": "calculator", "without a tool": "none"}


def claims(config: Config, count: int, rng: np.random.Generator, tool: str) -> list[StepRecord]:
    """Pairs of a right and a wrong claim with a teacher's traces: a call, digits that agree or not, a verdict."""
    records: list[StepRecord] = []
    calculator = make_tool("calculator", MARKERS)
    while len(records) < 2 * count:
        a, b = rng.integers(10 ** (config.digits - 1), 10**config.digits, 2).tolist()
        right = str(a * b)
        if len(right) < 2 * config.digits:
            continue
        wrong = right
        while wrong == right:  # the first and the last digit stay: they can be told without multiplying
            drawn = rng.integers(10, size=len(right)).astype(str)
            kept = rng.random(len(right)) < 0.5
            kept[[0, -1]] = True
            wrong = "".join(np.where(kept, list(right), drawn).tolist())
        call = f"[{a}*{b}]" if tool == "calculator" else ""
        answer = calculator.step(call).text if call else ""
        group = str(len(records) // 2)
        for claim in (right, wrong):
            marks = "".join("<=>"[(x > y) - (x < y) + 1] for x, y in zip(claim, right, strict=True))
            verdict = "y" if claim == right else "n"
            begun = len(claim) + len(call)
            answers = ((begun, begun + len(answer)),) if answer else ()
            records.append(
                StepRecord(
                    f"{a}*{b}=", (claim, call + answer + marks + verdict), None, float(claim == right), group,
                    f"{group}/{verdict}", forced=((0, len(claim)), *answers),
                )
            )  # fmt: skip
    return records


def new_model(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A model without any training."""
    tokenizer = CharTokenizer(ALPHABET)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=192, num_layers=3, num_heads=2,
        num_kv_heads=2, head_dim=32, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    if not folder.is_dir():
        save_weights(folder, config, init_params(config, jax.random.key(seed)), tokenizer=tokenizer)
    return folder


def judged(config: Config, seed: int, arm: str, folder: pathlib.Path) -> dict[str, float]:
    """Trains one arm and lets it judge new claims; kept in a file when done."""
    done = folder / f"{folder_of(arm)}.json"
    if done.is_file():
        return json.loads(done.read_text())
    print(f"== seed {seed}, {arm}", flush=True)
    tool, run = ARMS[arm], folder / folder_of(arm)
    folder.mkdir(parents=True, exist_ok=True)
    options = TrainPRMOptions(
        data=DataOptions(eval_fraction=0.0), model=BaseOptions(path=str(new_model(folder / "start", seed))),
        prm=Themis(tool=tool, markers=MARKERS, max_new_tokens=8 * config.digits + 8, rows=128),
        train=OptimizerOptions(learning_rate=config.learning_rate, batch_size=64),
        seed=seed, plots=False, eval_every=0, save_every=1000,
    )  # fmt: skip
    prm.train(options, run, data=claims(config, config.pairs, np.random.default_rng((seed, 0)), tool))
    model, kind = prm.load(run / "model"), options.prm
    new = claims(config, config.tested, np.random.default_rng((seed, 1)), tool)
    bare = [dataclasses.replace(record, steps=record.steps[:1], forced=()) for record in new]
    scores = np.array([one.response for one in model.score(bare)]).reshape(-1, 2)
    traces = write_traces(model, bare, make_tool(tool, MARKERS), max_new_tokens=kind.max_new_tokens, rows=128)
    same = [a.steps[1:] == b.steps[1:] for a, b in zip(traces, new, strict=True)]
    row = {
        "right claim preferred": float(np.mean(scores[:, 0] > scores[:, 1])),
        "traces as the teacher writes them": float(np.mean(same)),
    }
    print(row, flush=True)
    done.write_text(json.dumps(row))
    return row


def run(config: Config) -> report.Tables:
    """Accuracy on new pairs."""
    with run_folder(config.runs) as root:
        tables = []
        for seed in range(config.seeds):
            rows = {arm: judged(config, seed, arm, root / f"seed{seed}") for arm in ARMS}
            base = rows["without a tool"]["right claim preferred"]
            for row in rows.values():
                row["minus without a tool"] = row["right claim preferred"] - base
            tables.append(rows)
        return {"new pairs of claims": report.average(tables)}


PANELS = (report.Panel("new pairs of claims", ("right claim preferred",)),)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
