"""The plans of the Qwen2.5-Math presets on several devices, as the table of docs/scale.md; arithmetic only.

    python -m experiments.benchmarks.preset_plans

Nothing is compiled, and no weights are read.
"""

from experiments.benchmarks.pods import MODELS
from prm_jax.prime.accelerators import GIB, find_accelerator
from prm_jax.prime.plan import make_plan
from prm_jax.prime.plan_work import step_flops, step_seconds
from prm_jax.prime.presets import PRESETS

DEVICES = ((8, "h100"), (8, "h200"), (8, "v5e"), (8, "v6e"), (4, "v5p"))


def row(preset: str, count: int, name: str) -> str:
    """One row of the table."""
    device, model = find_accelerator(name), MODELS["7b" if "7b" in preset else "1.5b"]
    found = make_plan(PRESETS[preset], model, devices=count, platform=device.platform)
    state, update, rollout = (sum(causes.values()) / GIB for causes in (found.state, found.update, found.rollout))
    seconds = step_seconds(found.work, device)
    flops = sum(part.per_device(found.work) for part in step_flops(found.work).values())
    cells = [
        f"`{preset}`", f"{count} x {name}", f"{state:.1f}", f"{update:.1f}", f"{rollout:.1f}",
        f"{found.peak / GIB:.1f} of {device.memory / GIB:.1f}", "yes" if found.peak <= device.memory else "no",
        f"{flops / 1e15:.1f}", f"{seconds['generation']:.0f} + {seconds['training']:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the rows."""
    for preset in PRESETS:
        if preset.startswith("qwen2.5"):
            for count, name in DEVICES:
                print(row(preset, count, name))


if __name__ == "__main__":
    main()
