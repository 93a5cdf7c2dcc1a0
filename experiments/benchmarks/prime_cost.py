"""What PRIME's step costs over outcome-only training at equal rollouts, in processor time, and on what it is spent.

    python -m experiments.benchmarks.prime_cost --json experiments/benchmarks/prime_cost.json    # 15 minutes
    python -m experiments.benchmarks.prime_cost --smoke                                          # seconds

Settings: the preset tiny after a short warm start (256 responses of about 25 tokens); the same model with 64 responses
of exactly 256 tokens ("long"); tiny with four minibatches, for which the policy's old log-probs are computed too; and
that with the sampling policy as the PRM's reference, which needs no pass of its own. Each arm samples its own rollouts
through slots, lays them out and learns from them; the arms take turns, and another one begins each round. The parts
are compiled alone, so that they add up only roughly. Operations are those of the matrix products in the compiled
update. Settings that the JSON file has already are skipped. What was measured is in docs/training.md.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from prm_jax.data import load_task
from prm_jax.data.pipeline import PromptStream
from prm_jax.data.problems import Task
from prm_jax.models.loading import fresh_params
from prm_jax.prime import PRESETS, Options, train
from prm_jax.prime.collect import Collected, Collector
from prm_jax.prime.compose import Composed, compose
from prm_jax.prime.engines import sampling_parts
from prm_jax.prime.pieces import batch_logprobs
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources import ImplicitPRM
from prm_jax.prime.sources.base import SourceBatch
from prm_jax.prime.start import Overrides, load_start
from prm_jax.prime.step import make_step
from prm_jax.prime.training import outcome_only
from prm_jax.runs.hlo_operations import operations

ARMS = ("outcome only", "PRIME")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures PRIME's step against the outcome-only one."""

    settings: tuple[str, ...] = ("tiny", "long", "minibatches", "policy")
    """tiny, long, minibatches, policy (minibatches, and the sampling policy as the reference)."""
    repeats: int = 9
    """Steps of each arm, in turn; one more before them compiles."""
    warm_start: int = 300
    """Demonstration steps of the tiny setting, after which responses have a natural length."""
    smoke: bool = False
    """The smallest sizes instead."""
    json: Annotated[pathlib.Path | None, tyro.conf.arg(name="json")] = None
    """Write the numbers there, too."""


class EndlessTask:
    """A task whose responses never end before their maximum length."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def tokenizer(self) -> Any:
        """That of the task, without end tokens."""
        tokenizer = self._task.tokenizer()
        return type("Endless", (type(tokenizer),), {"eos_ids": ()})(tokenizer.alphabet)


class Arm:
    """One policy with its sampler and its compiled step."""

    def __init__(self, options: Options, task: Task) -> None:
        start = load_start(options, task)
        rollout = options.rollout
        sampler = Sampler(
            task, start.tokenizer, start.config, rollout.max_prompt_tokens, rollout.max_new_tokens,
            *sampling_parts(options, start, None),
        )  # fmt: skip
        base = fresh_params(start.config, jax.random.key(1)) if start.params is None else start.params
        self.composed: Composed = compose(options, start, base, sampler, None, Overrides())
        self.state = self.composed.initial_state()
        self.collector = Collector(
            sampler, PromptStream(task.train, 0), rollout, jax.random.key(0), self.composed.policy_params,
            source=self.composed.setup.source,
        )  # fmt: skip
        self.batch: Collected | None = None
        self._step = self.composed.step(make_step(self.composed.setup))
        self._count = 0

    def sample(self) -> None:
        """The batch of the next step."""
        self.batch = self.collector.draw(self.state, self._count)
        self._count += 1

    def learn(self) -> None:
        """The update, waited for."""
        assert self.batch is not None
        self.state, metrics = self._step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def parts_of(arm: Arm) -> dict[str, Callable[[], Any]]:
    """The parts of PRIME's update, compiled alone on the arm's present batch."""
    assert arm.batch is not None
    composed, state = arm.composed, arm.state
    source, policy = composed.setup.source, composed.setup.policy
    assert isinstance(source, ImplicitPRM)
    rows = jax.tree.map(jnp.asarray, composed.layout(arm.batch.arrays)[0])
    whole = SourceBatch(rows, state.policy, composed.frozen.reference, composed.frozen.constants)
    inputs = (state, whole)

    def reference(state: Any, whole: SourceBatch) -> Any:
        return batch_logprobs(source.learner.config, whole.constants, whole.rows)

    def judge(state: Any, whole: SourceBatch) -> Any:
        return source.judge(state.source, whole)

    def policy_optimizer(state: Any, whole: SourceBatch) -> Any:
        return policy.learner.optimizer.update(state.policy, state.policy_opt, state.policy)

    def prm_optimizer(state: Any, whole: SourceBatch) -> Any:
        return source.learner.optimizer.update(state.source.trainable, state.source.opt, state.source.trainable)

    made = {
        "reference's log-probs": reference, "PRM and reference": judge, "PRM's optimiser alone": prm_optimizer,
        "policy's optimiser alone": policy_optimizer,
    }  # fmt: skip
    compiled = {name: jax.jit(function).lower(*inputs).compile() for name, function in made.items()}
    return {name: lambda run=run: jax.block_until_ready(run(*inputs)) for name, run in compiled.items()}


def settings(arguments: Arguments, folder: pathlib.Path) -> dict[str, tuple[Options, Task]]:
    """The options and tasks that are measured."""
    tiny = PRESETS["smoke" if arguments.smoke else "tiny"]
    tiny = dataclasses.replace(
        tiny, rollout=dataclasses.replace(tiny.rollout, filter="none", outcome_noise=0.2), baseline=False
    )
    found: dict[str, tuple[Options, Task]] = {}
    task = load_task(tiny.task.name, **tiny.task.options)
    halves: dict[str, dict[str, Any]] = {
        "tiny": {}, "minibatches": {"minibatches": 4}, "policy": {"minibatches": 4, "reference": "policy"},
    }  # fmt: skip
    asked = [name for name in halves if name in arguments.settings]
    if asked:
        warm = dataclasses.replace(
            tiny, steps=1, sft=dataclasses.replace(tiny.sft, steps=2 if arguments.smoke else arguments.warm_start),
            prm=dataclasses.replace(tiny.prm, pretrain_rollouts=0), plots=False,
            eval=dataclasses.replace(tiny.eval, every=0, problems=8, prm_problems=0),
        )  # fmt: skip
        trained = train(warm, folder / "warm")
        begun = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, path=str(trained.policy)))
    for name in asked:
        policy = dataclasses.replace(begun.policy, minibatches=halves[name].get("minibatches", 1))
        found[name] = (
            dataclasses.replace(begun, policy=policy, prm=dataclasses.replace(begun.prm, **halves[name])),
            task,
        )
    if "long" in arguments.settings:
        prompts, samples, length = (2, 2, 16) if arguments.smoke else (8, 8, 256)
        rollout = dataclasses.replace(
            tiny.rollout, prompts_per_step=prompts, samples_per_prompt=samples, max_new_tokens=length
        )
        found["long"] = dataclasses.replace(tiny, rollout=rollout), EndlessTask(task)  # type: ignore[assignment]
    return found


def operations_of(arm: Arm) -> float:
    """Floating-point operations of the products in the compiled update."""
    assert arm.batch is not None
    rows = arm.composed.layout(arm.batch.arrays)[0]
    lowered = make_step(arm.composed.setup).lower(arm.state, arm.composed.frozen, rows)  # type: ignore[attr-defined]
    return sum(operations(lowered.compile().as_text()).values())


def timed(run: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def measure(options: Options, task: Task, repeats: int) -> dict[str, Any]:
    """Processor seconds of rollouts, updates and parts, and the ratios within each repeat."""
    arms = dict(zip(ARMS, (Arm(outcome_only(options), task), Arm(options, task)), strict=True))
    for arm in arms.values():
        arm.sample()
        arm.learn()
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for name in ARMS if repeat % 2 == 0 else ARMS[::-1]:
            seconds.setdefault(f"rollouts, {name}", []).append(timed(arms[name].sample))
            seconds.setdefault(f"update, {name}", []).append(timed(arms[name].learn))
    counted = {name: operations_of(arm) for name, arm in arms.items()}
    parts = parts_of(arms["PRIME"])
    for _ in range(repeats):
        for name, run in parts.items():
            seconds.setdefault(f"part: {name}", []).append(timed(run))
    plain, full = ([seconds[f"{what}, {name}"] for what in ("rollouts", "update")] for name in ARMS)
    # Equal rollouts: those of both arms count the same, at their mean.
    rollouts = [(a + b) / 2 for a, b in zip(plain[0], full[0], strict=True)]
    batch = arms["PRIME"].batch
    assert batch is not None
    return {
        "responses": len(batch.responses.texts),
        "tokens per response": float(batch.metrics["rollout/length"]),
        "columns": int(batch.arrays.mask.shape[1]),
        "processor seconds": {name: spread(own) for name, own in seconds.items()},
        "operations of the update": counted,
        "update, PRIME over outcome only, in operations": counted["PRIME"] / counted["outcome only"],
        "update, PRIME over outcome only": spread([b / a for a, b in zip(plain[1], full[1], strict=True)]),
        "step, PRIME over outcome only": spread(
            [(r + b) / (r + a) for r, a, b in zip(rollouts, plain[1], full[1], strict=True)]
        ),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Measures, prints and writes the numbers."""
    arguments = tyro.cli(Arguments)
    setting = {
        "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
        "jax": jax.__version__, "device": jax.devices()[0].platform,
    }  # fmt: skip
    repeats = 2 if arguments.smoke else arguments.repeats
    results: dict[str, Any] = {"setting": setting}
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text())
        left = tuple(name for name in arguments.settings if name not in results)
        arguments = dataclasses.replace(arguments, settings=left)
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    with tempfile.TemporaryDirectory() as folder:
        for name, (options, task) in settings(arguments, pathlib.Path(folder)).items():
            load = round(os.getloadavg()[0], 1)
            results[name] = found = {"load": load, "repeats": repeats, **measure(options, task, repeats)}
            print(
                f"\n{name}: {found['responses']} responses of {found['tokens per response']:.0f} tokens on average in "
                f"{found['columns']} columns"
            )
            print("| | median | min | max |\n|---|--:|--:|--:|")
            ratios = {key: value for key, value in found.items() if "over" in key and isinstance(value, dict)}
            print(f"update: {found['update, PRIME over outcome only, in operations']:.2f} times the operations")
            for key, value in {**found["processor seconds"], **ratios}.items():
                print(f"| {key} | {value['median']:.3f} | {value['min']:.3f} | {value['max']:.3f} |", flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
