"""Peak memory of the host while weights are loaded onto a mesh and saved from it, shard by shard and whole.

    python experiments/benchmarks/weights_memory.py          # 8 fake devices, a model of 0.4 GiB: 2 minutes

Every case runs in a process of its own; the figure is the peak of its resident memory, minus that before the case
began, over the bytes of the model. Fake devices are memory of the host, so that a loaded model itself counts 1.0.

  load, whole     the whole model on the first device, then spread over the mesh (what loading did before)
  load, sharded   load_weights(path, mesh=mesh)
  save, whole     every leaf gathered into one NumPy array, which JAX keeps (what saving did before)
  save, blocks    save_weights(path, config, params)

What was measured is in weights_memory.json and docs/models.md.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

CASES = ("load, whole", "load, sharded", "save, whole", "save, blocks")
SIZES = {
    "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 6, "num_heads": 16,
    "num_kv_heads": 4, "head_dim": 64,
}  # fmt: skip


def resident(field: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at its peak."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs /proc/self/status, which Linux has")


def child(case: str, directory: pathlib.Path) -> dict[str, float]:
    """One case: peak memory above the start, seconds of processor time."""
    import jax
    import numpy as np

    from prm_jax.models import load_weights, make_mesh, save_weights, shard_params

    mesh = make_mesh(1, len(jax.devices()))
    jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[-1]))
    saved = None
    if case.startswith("save"):
        saved = load_weights(directory / "model", mesh=mesh)
    # The peak starts again from here.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    start, begun = resident("VmRSS"), time.process_time()
    if case == "load, whole":
        saved = shard_params(load_weights(directory / "model")[1], mesh)
        jax.block_until_ready(saved)
    elif case == "load, sharded":
        saved = jax.block_until_ready(load_weights(directory / "model", mesh=mesh)[1])
    elif case == "save, whole":
        config, params = saved
        save_weights(directory / case, config, jax.tree.map(np.asarray, params))
    else:
        save_weights(directory / case, *saved)
    return {"peak": resident("VmHWM") - start, "seconds": time.process_time() - begun}


def measure(repeats: int) -> dict[str, object]:
    """All cases, interleaved."""
    import jax

    from prm_jax.models import ModelConfig, init_params, save_weights

    config = ModelConfig(**SIZES)
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as name:
        params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        save_weights(pathlib.Path(name) / "model", config, params)
        del params
        for number in range(repeats):
            for case in CASES:
                words = [sys.executable, __file__, "--case", case, "--directory", name]
                found[case].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
                print(number, case, found[case][-1], file=sys.stderr, flush=True)
                subprocess.run(["rm", "-rf", f"{name}/{case}"], check=True)
    return {
        "model_bytes": total, "devices": len(jax.devices()), "repeats": repeats, "jax": jax.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "cases": {
            case: {
                "peak_over_model": {
                    "median": round(statistics.median(one["peak"] / total for one in runs), 3),
                    "least": round(min(one["peak"] for one in runs) / total, 3),
                    "most": round(max(one["peak"] for one in runs) / total, 3),
                },
                "processor_seconds": round(statistics.median(one["seconds"] for one in runs), 2),
            }
            for case, runs in found.items()
        },
    }  # fmt: skip


def main() -> None:
    """Measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(child(options.case, options.directory)))
        return
    result = measure(options.repeats)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print("| case | peak over the model's bytes (least, most) | processor seconds |\n|---|---|---|")
    for case, figures in result["cases"].items():  # type: ignore[attr-defined]
        peak = figures["peak_over_model"]
        print(f"| {case} | {peak['median']} ({peak['least']}, {peak['most']}) | {figures['processor_seconds']} |")


if __name__ == "__main__":
    main()
