"""Weak scaling of the PRIME step on 1, 2, 4 and 8 fake devices: operations, bytes sent and memory per device.

    python experiments/benchmarks/weak_scaling.py --json experiments/benchmarks/weak_scaling.json --plot docs/images

Every device keeps the same number of rows. Programs are compiled for fake CPU devices and not run; loops count by their
iterations. The figures and the plot are those of docs/pods.md.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import platform

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")

import jax

from prm_jax.models import ModelConfig
from prm_jax.models.sharding import make_mesh
from prm_jax.prime import PRESETS, Options, abstract_step
from prm_jax.prime.plan import make_plan
from prm_jax.prime.plan_table import ideal_operations
from prm_jax.prime.plan_work import collective_minimum
from prm_jax.runs.hlo_accounting import collective_bytes
from prm_jax.runs.hlo_operations import operations

ROWS, TOKENS = 4, 128
CONFIG = ModelConfig(
    vocab_size=1152, hidden_size=256, intermediate_size=704, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=32,
    attention_bias=True, remat="full", attention="naive", scan_unroll=1,
)  # fmt: skip
COUNTS = (1, 2, 4, 8)
LAYOUTS = {"fsdp": lambda n: (1, n, 1), "data": lambda n: (n, 1, 1), "fsdp, tensor 2": lambda n: (1, n // 2, 2)}
"""Name -> sizes of data, fsdp and tensor on a number of devices."""


def options_of(sizes: tuple[int, int, int]) -> Options:
    """A run with `ROWS` rows per row-splitting device."""
    base, change = PRESETS["qwen2.5-7b-math"], dataclasses.replace
    data, fsdp, tensor = sizes
    return change(
        base,
        model=change(base.model, attention="naive", compute_dtype="float32"),
        rollout=change(
            base.rollout, prompts_per_step=data * fsdp, samples_per_prompt=ROWS,
            max_prompt_tokens=TOKENS // 2, max_new_tokens=TOKENS // 2,
        ),
        prm=change(base.prm, minibatches=1, microbatches=1),
        policy=change(base.policy, minibatches=1, microbatches=1),
        mesh=change(base.mesh, data=data, fsdp=fsdp, tensor=tensor),
    )  # fmt: skip


@functools.cache
def measure(sizes: tuple[int, int, int]) -> dict[str, float]:
    """Compiles the step for a mesh; figures of one device."""
    options, count = options_of(sizes), sizes[0] * sizes[1] * sizes[2]
    mesh = make_mesh(*sizes, devices=jax.devices()[:count]) if count > 1 else None
    step, arguments = abstract_step(options, CONFIG, mesh=mesh)
    compiled = step.lower(*arguments).compile()  # type: ignore[attr-defined]
    text, memory = compiled.as_text(), compiled.memory_analysis()
    plan = make_plan(options, CONFIG, devices=count, platform="cpu")
    return {
        "operations": sum(operations(text).values()),
        "operations_ideal": ideal_operations(plan),
        "sent": sum(collective_bytes(text).values()),
        "sent_minimum": collective_minimum(plan.work),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def main() -> None:
    """Measures, prints a table and draws a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    parser.add_argument("--plot", type=pathlib.Path, help="directory for weak_scaling.png; needs matplotlib")
    options = parser.parse_args()
    found: dict[str, dict[int, dict[str, float]]] = {}
    print("| mesh | devices | GFLOP per device | MiB sent | least | arguments, MiB | temporaries, MiB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, layout in LAYOUTS.items():
        found[name] = {n: measure(layout(n)) for n in COUNTS if n >= (2 if "tensor" in name else 1)}
        for n, row in found[name].items():
            cells = [
                row["operations"] / 1e9,
                *(row[key] / 2**20 for key in ("sent", "sent_minimum", "arguments", "temporaries")),
            ]
            print(f"| {name} | {n} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)
    if options.json:
        setting = {"machine": platform.machine(), "python": platform.python_version(), "jax": jax.__version__}
        setting |= {"rows_per_device": ROWS, "tokens": TOKENS}
        options.json.write_text(json.dumps({"setting": setting, "meshes": found}, indent=1) + "\n")
    if options.plot:
        draw(found, options.plot / "weak_scaling.png")


def draw(found: dict[str, dict[int, dict[str, float]]], path: pathlib.Path) -> None:
    """Operations and bytes sent per device over the number of devices."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, rows in found.items():
        counts = list(rows)
        (curve,) = left.plot(counts, [rows[n]["operations"] / rows[n]["operations_ideal"] for n in counts], marker="o")
        curve.set_label(name)
        right.plot(counts, [rows[n]["sent"] / 2**20 for n in counts], marker="o", color=curve.get_color(), label=name)
        least = [rows[n]["sent_minimum"] / 2**20 for n in counts]
        right.plot(counts, least, linestyle=":", color=curve.get_color())
    left.set(ylabel="operations per device / ideal", ylim=(0, 1.5))
    right.set(ylabel="MiB sent per device (dotted: least)", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="devices", xscale="log", xticks=COUNTS, xticklabels=[str(n) for n in COUNTS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
