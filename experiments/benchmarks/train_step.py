"""One training step, side by side with Tunix's GRPO step on the same small Llama with the same weights.

    python -m experiments.benchmarks.train_step [--smoke] [--json FILE]

Timed is the compiled update alone, on a prepared batch: forward pass, loss, gradient, clip and AdamW, metrics
included, until the new parameters are on the device. No sampling, no verifier, no host loop. Tunix's half is
`tunix_step.py`; without that package only this project's rows are measured. What was measured is in README.md.
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from prm_jax.models import ModelConfig, init_params, token_logprobs
from prm_jax.prime import Batch, Frozen, ImplicitPRM, Setup, init_state, make_step
from prm_jax.prime.advantages import make_advantage
from prm_jax.prime.options import AdvantageOptions, PolicyOptions, PRMOptions, RewardOptions
from prm_jax.prime.policy import PolicyPhase, make_policy_loss
from prm_jax.prime.shaping import make_reward
from prm_jax.runs.learner import Learner

PAD = 0
INSTALL = "pip install 'google-tunix==0.1.7'"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model and the batch, and how often the steps run."""

    vocab_size: int = 8192
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    prompts: int = 4
    samples: int = 4
    """Responses a prompt."""
    prompt_tokens: int = 16
    response_tokens: int = 48
    learning_rate: float = 1e-4
    kl_coef: float = 0.04
    """Of the rows with a divergence from the reference."""
    steps: int = 2
    """Steps in one timing."""
    repeats: int = 7
    """Timings of each contender, in turn."""
    tolerance: float = 1e-3
    """Largest difference in log-probs, and largest relative one in gradient norm and entropy."""

    @property
    def rows(self) -> int:
        """B."""
        return self.prompts * self.samples

    @property
    def model(self) -> ModelConfig:
        """The Llama; Tunix's always rotates with base 1e6, whatever its configuration says."""
        return ModelConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, intermediate_size=self.intermediate_size,
            num_layers=self.num_layers, num_heads=self.num_heads, num_kv_heads=self.num_heads,
            head_dim=self.hidden_size // self.num_heads, rope_theta=1e6, scan_unroll=self.num_layers,
        )  # fmt: skip


SMOKE = Config(vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, prompts=2,
               prompt_tokens=4, response_tokens=12, steps=1, repeats=2)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contender:
    """A training step with its own state.

    Attributes:
      name: the row's.
      group: contenders of one group compute the same thing, and their numbers are compared.
      step: runs one update and returns its scalars, not yet waited for.
      logp: log-probs [B, R] of the response tokens under the present parameters; 0 off the response.
      programs: the step's compiled programs, in order.
    """

    name: str
    group: str
    step: Callable[[], dict[str, jax.Array]]
    logp: Callable[[], np.ndarray]
    programs: Sequence[Any]


def make_batch(config: Config) -> Batch:
    """Random tokens; prompts of one length, responses of half to all of theirs, half of every group right."""
    rng = np.random.default_rng(0)
    length = config.prompt_tokens + config.response_tokens
    lengths = rng.integers(config.response_tokens // 2, config.response_tokens + 1, config.rows)
    position = np.arange(length) - config.prompt_tokens
    mask = (position >= 0) & (position < lengths[:, None])
    tokens = rng.integers(PAD + 1, config.vocab_size, (config.rows, length))
    tokens = np.where(mask | (position < 0), tokens, PAD)
    return Batch(
        tokens=jnp.asarray(tokens, jnp.int32),
        mask=jnp.asarray(mask),
        keep=jnp.ones(config.rows, bool),
        outcome=jnp.asarray(np.arange(config.rows) % 2, jnp.float32),
        group_ids=jnp.asarray(np.arange(config.rows) // config.samples, jnp.int32),
        step_ids=jnp.asarray(np.where(mask, position // 8, -1), jnp.int32),
        start=config.prompt_tokens,
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """The same transformation for everyone."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(config.learning_rate, weight_decay=0.01))


def ours(config: Config, params: Any, batch: Batch, *, name: str, kl_coef: float, process: bool) -> Contender:
    """This project's step: outcome-only GRPO, or PRIME with a PRM of the policy's size."""
    policy = PolicyOptions(kl_coef=kl_coef, kl_estimator="k1")
    advantage = AdvantageOptions(estimator="grpo", process_coef=float(process))
    learner = Learner(config.model, make_optimizer(config))
    source = None
    if process:
        source = ImplicitPRM(learner, params, PRMOptions(), policy_config=config.model)
    setup = Setup(
        PolicyPhase(learner, policy, make_policy_loss(policy), 1.0, 1), source, None, make_reward(RewardOptions()),
        make_advantage(advantage), advantage,
    )  # fmt: skip
    frozen = Frozen(params, params if process else ())
    state = init_state(setup, frozen, jax.random.key(0))
    compiled = make_step(setup).lower(state, frozen, batch).compile()  # type: ignore[attr-defined]

    def step() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics, _ = compiled(state, frozen, batch)
        # The parameters are among what is waited for.
        return {**{k: metrics[f"policy/{k}"] for k in ("loss", "grad_norm", "entropy")}, "state": state.step}

    score = jax.jit(lambda p: token_logprobs(config.model, p, batch.tokens, batch.mask, start=batch.start))

    def logp() -> np.ndarray:
        return np.asarray(score(state.policy))[:, batch.start :]

    return Contender(f"prm_jax: {name}", "PRIME" if process else name, step, logp, [compiled])


def contenders(config: Config) -> tuple[list[Contender], str]:
    """Every row, and what to say about a missing peer ("" when it is there)."""
    params = init_params(config.model, jax.random.key(1))
    batch = make_batch(config)
    plain, divergence = "GRPO", "GRPO with KL to a reference"
    rows = [
        ours(config, params, batch, name=plain, kl_coef=0.0, process=False),
        ours(config, params, batch, name=divergence, kl_coef=config.kl_coef, process=False),
        ours(config, params, batch, name="PRIME (online PRM)", kl_coef=0.0, process=True),
    ]
    try:
        from experiments.benchmarks import tunix_step
    except ImportError as error:
        return rows, f"Tunix left out, it cannot be imported ({error}); to compare with it: {INSTALL}"
    for name, kl_coef in ((plain, 0.0), (divergence, config.kl_coef)):
        rows.append(tunix_step.make(config, params, batch, name=name, kl_coef=kl_coef))
    return rows, ""


def check_agreement(config: Config, rows: Sequence[Contender]) -> dict[str, dict[str, float]]:
    """Largest differences within each group, before and after one update; every row runs that update.

    Raises:
      ValueError: when a difference exceeds the tolerance: then there is nothing to compare in speed.
    """
    before = {row.name: row.logp() for row in rows}
    scalars = {row.name: {k: float(v) for k, v in row.step().items()} for row in rows}
    after = {row.name: row.logp() for row in rows}
    table: dict[str, dict[str, float]] = {}
    for i, row in enumerate(rows):
        if not all(math.isfinite(x) for x in scalars[row.name].values()):
            raise ValueError(f"{row.name}: non-finite scalars {scalars[row.name]}")
        for peer in (other for other in rows[i + 1 :] if other.group == row.group):
            a, b = scalars[row.name], scalars[peer.name]
            found = {
                "log-probs": float(np.abs(before[row.name] - before[peer.name]).max()),
                "loss": abs(a["loss"] - b["loss"]),
                "gradient norm (relative)": abs(a["grad_norm"] - b["grad_norm"]) / a["grad_norm"],
                "entropy (relative)": abs(a["entropy"] - b["entropy"]) / a["entropy"],
                "log-probs after the update": float(np.abs(after[row.name] - after[peer.name]).max()),
            }
            bad = {k: v for k, v in found.items() if not v <= config.tolerance}
            if bad:
                raise ValueError(f"{row.name} and {peer.name} do not compute the same: {bad}")
            table[row.group] = found
    return table


def time_all(config: Config, rows: Sequence[Contender]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(wall, processor) seconds a step: the rows take turns, and another one begins each round."""
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    processor: dict[str, list[float]] = {row.name: [] for row in rows}
    for i in range(config.repeats):
        for row in [*rows[i % len(rows) :], *rows[: i % len(rows)]]:
            began, used = time.perf_counter(), time.process_time()
            for _ in range(config.steps):
                jax.block_until_ready(row.step())
            processor[row.name].append((time.process_time() - used) / config.steps)
            seconds[row.name].append((time.perf_counter() - began) / config.steps)
    return seconds, processor


def processor_ratios(rows: Sequence[Contender], processor: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Processor time of each peer over this project's row of the same group, within each repeat."""
    table = {}
    for row in rows:
        for peer in (other for other in rows if other.group == row.group and rows.index(other) > rows.index(row)):
            ratios = [b / a for a, b in zip(processor[row.name], processor[peer.name], strict=True)]
            table[f"{peer.name} over {row.name}"] = {
                "processor time, median ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            }  # fmt: skip
    return table


def vocabulary_arrays(text: str, elements: int) -> int:
    """Instructions of a compiled program that write an array of at least so many elements.

    Insides of fusions are left out: they write nothing. So are names for memory that exists already.
    """
    count, fused = 0, False
    for line in text.splitlines():
        if line and not line[0].isspace():
            fused = "fused_computation" in line or "wrapped_" in line.split("(")[0]
        found = re.match(r"\s+(?:ROOT )?\S+ = \w+\[([\d,]*)\]\S* ([\w-]+)\(", line)
        if found and not fused and found[2] not in ("parameter", "get-tuple-element", "bitcast", "constant"):
            count += math.prod(int(d) for d in found[1].split(",") if d) >= elements
    return count


def run(config: Config) -> dict[str, Any]:
    """All numbers: agreement, and per row seconds, temporary memory and arrays over the vocabulary."""
    rows, missing = contenders(config)
    agreement = check_agreement(config, rows)
    seconds, processor = time_all(config, rows)
    elements = config.rows * config.response_tokens * config.vocab_size
    base = statistics.median(seconds[rows[0].name])
    table = {}
    for row in rows:
        times = seconds[row.name]
        table[row.name] = {
            "ms a step (median)": 1e3 * statistics.median(times),
            "least": 1e3 * min(times),
            "most": 1e3 * max(times),
            "CPU s a step (median)": statistics.median(processor[row.name]),
            "times the first row": statistics.median(times) / base,
            "temporary MiB": max(p.memory_analysis().temp_size_in_bytes for p in row.programs) / 2**20,
            "arrays over [B, R, V]": sum(vocabulary_arrays(p.as_text(), elements) for p in row.programs),
        }
    ratios = processor_ratios(rows, processor)
    return {"missing": missing, "agreement": agreement, "rows": table, "processor": ratios}


def machine() -> str:
    """One line on what the numbers were made with."""

    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    packages = ", ".join(of(p) for p in ("jax", "flax", "optax", "google-tunix"))
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    kind, python = jax.devices()[0].device_kind, platform.python_version()
    return f"{kind}, {os.cpu_count()} cores{load}; {packages}, Python {python}"


def markdown(table: dict[str, dict[str, float]]) -> str:
    """Rows of named numbers as a markdown table."""
    if not table:
        return ""
    columns = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |" for name, row in table.items()]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures training steps side by side."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)
    smoke: bool = False
    """The smallest sizes instead."""
    json: pathlib.Path | None = None
    """Write the numbers there, too."""


def main() -> None:
    """Reads flags, runs, prints."""
    arguments = tyro.cli(Arguments)
    config = SMOKE if arguments.smoke else arguments.config
    result = {**run(config), "config": dataclasses.asdict(config), "machine": machine()}
    if result["missing"]:
        print(result["missing"] + "\n")
    if result["agreement"]:
        print(f"Largest differences between the two\n\n{markdown(result['agreement'])}\n")
    if result["processor"]:
        print(f"{markdown(result['processor'])}\n")
    print(f"{markdown(result['rows'])}\n\n{config.repeats} x {config.steps} steps in turn; {result['machine']}")
    print(config)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
