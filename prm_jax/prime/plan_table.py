"""A plan as text, and as JSON values."""

import math
from typing import Any

from prm_jax.prime.accelerators import Accelerator
from prm_jax.prime.plan import Plan, gib, remedies
from prm_jax.prime.plan_memory import attention_of
from prm_jax.prime.plan_work import collective_minimum, step_flops, step_seconds

_SMALL = 0.001  # share of the peak below which causes are summed up


def summary(found: Plan, device: Accelerator) -> dict[str, Any]:
    """The plan as JSON values: bytes, operations and seconds per device and step."""
    work = found.work
    flops = step_flops(work)
    return {
        "method": "arithmetic",
        "device": device.name,
        "devices": math.prod(work.mesh.shape.values()),
        "mesh": dict(work.mesh.shape),
        "memory": {"state": found.state, "update": found.update, "rollout": found.rollout},
        "peak_bytes": found.peak,
        "device_bytes": device.memory,
        "fits": found.peak <= device.memory,
        "flops": {name: part.per_device(work) for name, part in flops.items()},
        "flops_without_repetition": sum(part.total() for part in flops.values()) / math.prod(work.mesh.shape.values()),
        "collective_bytes_minimum": collective_minimum(work),
        "seconds": step_seconds(work, device),
        "remedies": [{"option": remedy.option, "saves_bytes": remedy.saves} for remedy in remedies(found)],
    }


def render(found: Plan, device: Accelerator) -> str:
    """The plan as tables for people."""
    values = summary(found, device)
    work = found.work
    shape = work.mesh.shape
    lines = [
        f"{values['devices']} x {device.name}, mesh data {shape['data']} x fsdp {shape['fsdp']} x tensor "
        f"{shape['tensor']}; {work.rows} rows x {work.columns} tokens; {work.config.compute_dtype}, remat "
        f"{work.config.remat}, attention {attention_of(work, work.config)}",
        "By arithmetic: nothing was compiled. Per device:",
        "",
        "memory",
    ]
    lines += _memory(found, device)
    lines += ["", "operations per step"]
    lines += [f"  {name:<48} {count / 1e12:10.3g} TFLOP" for name, count in values["flops"].items()]
    total, ideal = sum(values["flops"].values()), values["flops_without_repetition"]
    lines.append(f"  {'all':<48} {total / 1e12:10.3g} TFLOP ({total / ideal:.2f} times the ideal)")
    if values["devices"] > 1:
        lines += ["", "bytes sent per step"]
        lines.append(f"  {'minimum':<48} {gib(values['collective_bytes_minimum']):>14}")
    lines += ["", f"time per step at the peak of a {device.name} (roofline; real steps take longer)"]
    lines += [f"  {name:<48} {seconds:10.3g} s" for name, seconds in values["seconds"].items()]
    if work.options.rollout.filter == "resample":
        lines.append("  generation is one round; --rollout.filter resample may take several")
    return "\n".join(lines + _verdict(found, device))


def _memory(found: Plan, device: Accelerator) -> list[str]:
    small = [(cause, size) for cause, size in found.causes() if size < _SMALL * found.peak]
    shown = [item for item in found.causes() if item not in small]
    if small:
        shown.append(("other", sum(size for _, size in small)))
    lines = [f"  {cause:<48} {gib(size):>14}" for cause, size in shown]
    update, rollout = sum(found.update.values()), sum(found.rollout.values())
    other, size = ("sampling", rollout) if update >= rollout else ("the update", update)
    lines.append(f"  {'peak':<48} {gib(found.peak):>14} of {gib(device.memory)}")
    lines.append(f"  ({other}, at another time, needs {gib(size)} besides the state)")
    return lines


def _verdict(found: Plan, device: Accelerator) -> list[str]:
    if found.peak <= device.memory:
        return ["", "It fits."]
    lines = ["", f"It does not fit: {gib(found.peak - device.memory)} too much. What helps, each alone:"]
    lines += [f"  {remedy.option:<48} saves {gib(remedy.saves):>9}" for remedy in remedies(found)]
    return [*lines, "  more devices (--devices) with a larger --mesh.fsdp"]
