"""Whole PRIME steps of Qwen2.5 sizes compiled for TPU slices that are not there: memory, communication, operations.

    pip install 'prm-jax[tpu]'                                       # libtpu; Linux, no TPU needed
    python experiments/benchmarks/pods.py --json experiments/benchmarks/pods.json   # all: half an hour on one core
    python experiments/benchmarks/pods.py --cases 1.5b-v5e --layers 2

Nothing is run. The figures are those of docs/pods.md; each case is also a `prm-jax plan --compile` command, which is
printed with it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu is for the compiler's process

import jax

from prm_jax.models import ModelConfig
from prm_jax.prime.accelerators import find_accelerator
from prm_jax.prime.options import Options
from prm_jax.prime.plan import make_plan
from prm_jax.prime.plan_compile import CompiledStep, compile_step
from prm_jax.prime.plan_table import ideal_operations
from prm_jax.prime.plan_work import collective_minimum
from prm_jax.prime.presets import PRESETS

MODELS = {
    "7b": ModelConfig(
        architecture="qwen2", attention_bias=True, vocab_size=152064, hidden_size=3584, intermediate_size=18944,
        num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, rope_theta=1e4, max_position_embeddings=4096,
        dtype="bfloat16",
    ),
    "1.5b": ModelConfig(
        architecture="qwen2", attention_bias=True, vocab_size=151936, hidden_size=1536, intermediate_size=8960,
        num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128, rope_theta=1e4, max_position_embeddings=4096,
        tie_word_embeddings=True, dtype="bfloat16",
    ),
}  # fmt: skip
"""Qwen2.5-Math-7B and -1.5B; lengths beyond 4,096 are those of Qwen2.5-7B, which has the same shapes."""

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """One step.

    Attributes:
      model: of ``MODELS``.
      device, devices: what it is compiled for.
      mesh: sizes of data, fsdp and tensor.
      rows, tokens: of the batch.
      lora: "" for full fine-tuning; "prm" for adapters on the PRM, "both" for adapters on the policy too.
      microbatch_tokens: per device and piece of the update; 0: one piece.
      most_sent: largest allowed multiple of the least communication.
    """

    model: str
    device: str
    devices: int
    mesh: tuple[int, int, int]
    rows: int
    tokens: int
    lora: str = ""
    microbatch_tokens: int = 0
    most_sent: float = 1.1

    def options(self) -> Options:
        """Of the run."""
        base = PRESETS["qwen2.5-7b-math"]
        data, fsdp, tensor = self.mesh
        change = dataclasses.replace
        rank = {"": (0, 0), "prm": (0, 16), "both": (16, 16)}[self.lora]
        return change(
            base,
            model=change(base.model, attention="auto", lora_rank=rank[0]),
            rollout=change(
                base.rollout, prompts_per_step=self.rows // 4, max_prompt_tokens=1024, max_new_tokens=self.tokens - 1024
            ),
            prm=change(base.prm, minibatches=1, microbatch_tokens=self.microbatch_tokens, lora_rank=rank[1]),
            policy=change(base.policy, minibatches=1, microbatch_tokens=self.microbatch_tokens),
            mesh=change(base.mesh, data=data, fsdp=fsdp, tensor=tensor),
        )  # fmt: skip

    def command(self) -> str:
        """The same on the command line."""
        data, fsdp, tensor = self.mesh
        words = [f"prm-jax plan --compile --device {self.device} --devices {self.devices}"]
        words += [f"--preset qwen2.5-{self.model}-math --model.path CONFIG --model.attention auto"]
        words += [f"--rollout.prompts-per-step {self.rows // 4} --rollout.max-new-tokens {self.tokens - 1024}"]
        tokens = self.microbatch_tokens
        words += [f"--{part}.minibatches 1 --{part}.microbatch-tokens {tokens}" for part in ("prm", "policy")]
        words += ["--prm.lora-rank 16"] if self.lora else []
        words += ["--model.lora-rank 16"] if self.lora == "both" else []
        return " ".join([*words, f"--mesh.data {data} --mesh.fsdp {fsdp} --mesh.tensor {tensor}"])


CASES = {
    "7b-v5p": Case("7b", "v5p", 64, (1, 64, 1), 256, 4096),
    "7b-v5p-lora-prm": Case("7b", "v5p", 64, (1, 64, 1), 256, 4096, lora="prm"),
    "7b-v5p-lora": Case("7b", "v5p", 64, (1, 64, 1), 256, 4096, lora="both"),
    "7b-v6e": Case("7b", "v6e", 64, (1, 64, 1), 64, 8192),
    "1.5b-v5e": Case("1.5b", "v5e", 16, (1, 16, 1), 64, 4096, most_sent=1.3),
}


def main() -> None:
    """Compiles the cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--layers", type=int, help="of the model, instead of its own number")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    parser.add_argument("--programs", type=pathlib.Path, help="directory for the compiled programs")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["cases"]  # cases that are compiled now replace those of the file
    for name in options.cases:
        print(f"{name}: {CASES[name].command()}", flush=True)
        keep = None if options.programs is None else options.programs / f"{name}.txt"
        rows[name] = figures(CASES[name], options.layers, keep=keep)
        print(line(name, rows[name]), flush=True)
        if options.json:
            _write(options.json, options.layers, rows)
    print("\n".join([*HEADER, *(line(name, rows[name]) for name in CASES if name in rows)]))


def _write(path: pathlib.Path, layers: int | None, rows: dict[str, Any]) -> None:
    setting = {"machine": platform.machine(), "python": platform.python_version(), "jax": jax.__version__}
    path.write_text(json.dumps({"setting": setting, "layers": layers, "cases": rows}, indent=1) + "\n")


def figures(case: Case, layers: int | None = None, *, keep: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles a case; JSON values of what the compiler says, with the ideal and the minimum beside them."""
    config, device = MODELS[case.model], find_accelerator(case.device)
    if layers:
        config = dataclasses.replace(config, num_layers=layers)
    options = case.options()
    found = make_plan(options, config, devices=case.devices, platform=device.platform)
    step: CompiledStep = compile_step(options, config, device, devices=case.devices, keep=keep)
    sent, operations = sum(step.collectives.values()), sum(step.operations.values())
    return {
        "command": case.command(),
        "compiler": step.compiler,
        "seconds": round(step.seconds, 1),
        "memory": step.memory,
        "peak_bytes": step.peak,
        "device_bytes": device.memory,
        "arithmetic_update_bytes": sum(found.state.values()) + sum(found.update.values()),
        "collectives": step.collectives,
        "sent_ratio": round(sent / collective_minimum(found.work), 3),
        "operations": step.operations,
        "operations_ratio": round(operations / ideal_operations(found), 3),
        "kernels": step.kernels,
        "largest_arrays": list(step.largest_arrays),
        "refusal": step.refusal[:500],
    }


HEADER = (
    "| step | on | arguments + temporaries, GiB per device | sent, GiB (times the minimum) | TFLOP per device "
    "(times the ideal) | kernels: attention, head | compiled in, s |",
    "|---|---|--:|--:|--:|--:|--:|",
)
_LORA = {"": "full", "prm": "PRM with adapters", "both": "all with adapters"}


def line(name: str, row: dict[str, Any]) -> str:
    """One row of the table."""
    case = CASES[name]
    device = f"{case.devices} x {case.device}, fsdp {case.mesh[1]}"
    cells = [f"{case.model.upper()}, {case.rows} x {case.tokens:,}, {_LORA[case.lora]}", device]
    if row["refusal"]:
        return (
            f"| {' | '.join(cells)} | refused: {row['peak_bytes'] / GIB:.1f} of {row['device_bytes'] / GIB:.1f} |||||"
        )
    memory, sent = row["memory"], sum(row["collectives"].values())
    kernels = {"attention": 0, "head": 0}
    for kernel, times in row["kernels"].items():
        kernels["head" if kernel.startswith("linear_logprob") else "attention"] += times
    cells += [
        f"{memory['arguments'] / GIB:.2f} + {memory['temporaries'] / GIB:.2f} of {row['device_bytes'] / GIB:.2f}",
        f"{sent / GIB:.1f} ({row['sent_ratio']:.2f})",
        f"{sum(row['operations'].values()) / 1e12:,.0f} ({row['operations_ratio']:.2f})",
        f"{kernels['attention']}, {kernels['head']}",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
