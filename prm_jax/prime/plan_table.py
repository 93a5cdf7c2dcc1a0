"""A plan as text, and as JSON values; with what the compiler says where it was asked."""

import dataclasses
import math
from typing import Any

from prm_jax.prime.accelerators import Accelerator
from prm_jax.prime.plan import Plan, gib, remedies
from prm_jax.prime.plan_compile import CompiledStep
from prm_jax.prime.plan_memory import attention_of, parameter_counts
from prm_jax.prime.plan_work import collective_minimum, step_flops, step_seconds

_SMALL = 0.001  # share of the peak below which causes are summed up


def fits(found: Plan, device: Accelerator, compiled: CompiledStep | None = None) -> bool:
    """Whether a run fits: by the compiler for its step, where that was asked, and by arithmetic for everything else."""
    if compiled is None:
        return found.peak <= device.memory
    sampling = sum(found.state.values()) + sum(found.rollout.values())
    return max(sampling, compiled.peak) <= device.memory


def ideal_operations(found: Plan) -> float:
    """Operations per device of a step's training phases when no work is repeated."""
    trained = [part.total() for name, part in step_flops(found.work).items() if name != "generation"]
    return sum(trained) / math.prod(found.work.mesh.shape.values())


def summary(found: Plan, device: Accelerator, compiled: CompiledStep | None = None) -> dict[str, Any]:
    """The plan as JSON values: bytes, operations and seconds per device and step."""
    work = found.work
    flops = step_flops(work)
    return {
        "method": "arithmetic" if compiled is None else "compiled",
        "device": device.name,
        "devices": math.prod(work.mesh.shape.values()),
        "mesh": dict(work.mesh.shape),
        "parameters": dict(zip(("total", "active"), parameter_counts(work.config), strict=True)),
        "memory": {"state": found.state, "update": found.update, "rollout": found.rollout},
        "peak_bytes": found.peak,
        "device_bytes": device.memory,
        "fits": fits(found, device, compiled),
        "flops": {name: part.per_device(work) for name, part in flops.items()},
        "flops_without_repetition": sum(part.total() for part in flops.values()) / math.prod(work.mesh.shape.values()),
        "collective_bytes_minimum": collective_minimum(work),
        "seconds": step_seconds(work, device),
        "remedies": [{"option": remedy.option, "saves_bytes": remedy.saves} for remedy in remedies(found)],
        "compiled": None if compiled is None else _compiled_values(found, compiled),
    }


def _compiled_values(found: Plan, compiled: CompiledStep) -> dict[str, Any]:
    return dataclasses.asdict(compiled) | {
        "peak_bytes": compiled.peak,
        "operations_ideal": ideal_operations(found),
        "collective_bytes": sum(compiled.collectives.values()),
    }


def render(found: Plan, device: Accelerator, compiled: CompiledStep | None = None, *, why: str = "") -> str:
    """The plan as tables for people.

    Args:
      found: by arithmetic.
      device: kind of device.
      compiled: what the compiler says about the step, or None.
      why: the reason why it was not asked although it should have been.
    """
    values = summary(found, device)
    work = found.work
    shape = work.mesh.shape
    lines = [
        f"{values['devices']} x {device.name}, mesh {' x '.join(f'{axis} {size}' for axis, size in shape.items())}; "
        f"{work.rows} rows x {work.columns} tokens; {work.config.compute_dtype}, remat "
        f"{work.config.remat}, attention {attention_of(work, work.config)}",
        f"By arithmetic: nothing was compiled{f' ({why})' if why else ''}. Per device:"
        if compiled is None
        else f"By arithmetic; below, what {compiled.compiler} says. Per device:",
        "",
        "memory",
    ]
    if work.config.num_experts:
        total, active = (count / 1e9 for count in values["parameters"].values())
        lines.insert(1, f"{total:.3g} billion parameters in {work.config.num_experts} experts, {active:.3g} per token")
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
    if compiled is not None:
        lines += ["", *_compiled(found, device, compiled)]
    return "\n".join(lines + _verdict(found, device, compiled))


def _compiled(found: Plan, device: Accelerator, compiled: CompiledStep) -> list[str]:
    """What the compiler says, line by line."""

    def line(name: str, value: str) -> str:
        return f"  {name:<48} {value}"

    lines = [f"the step compiled for {compiled.target} by {compiled.compiler} in {compiled.seconds:.0f} s, not run"]
    if compiled.refusal:
        return [*lines, f"  refused: it needs {gib(compiled.used_bytes)} of {gib(device.memory)} per device"]
    memory = compiled.memory
    lines += [
        line("arguments (state, reference, batch)", f"{gib(memory['arguments']):>14}"),
        line("temporaries", f"{gib(memory['temporaries']):>14}"),
        line("output that takes no argument's place", f"{gib(memory['output'] - memory['aliased']):>14}"),
        line("program", f"{gib(memory['program']):>14}"),
        line("peak", f"{gib(compiled.peak):>14} of {gib(device.memory)}"),
        line("largest array", f"{gib(compiled.largest_arrays[0][0]):>14} {compiled.largest_arrays[0][1]}"),
    ]
    lines += [line(f"sent by {kind}", f"{gib(size):>14}") for kind, size in sorted(compiled.collectives.items())]
    sent, least = sum(compiled.collectives.values()), collective_minimum(found.work)
    if sent and least:
        lines.append(line("sent", f"{gib(sent):>14} ({sent / least:.2f} times the minimum)"))
    names = {"products": "operations of XLA's products", "head": "of the head's kernels", "attention": "of attention's"}
    lines += [line(names[name], f"{count / 1e12:>10.3g} TFLOP") for name, count in compiled.operations.items()]
    total, ideal = sum(compiled.operations.values()), ideal_operations(found)
    lines.append(line("operations", f"{total / 1e12:>10.3g} TFLOP ({total / ideal:.2f} times the ideal)"))
    lines += [line(f"kernel {name}", f"{times:>10} times") for name, times in compiled.kernels.items()]
    seconds = max(total / device.flops, sent / device.link)
    return [*lines, line("training, roofline", f"{seconds:>10.3g} s")]


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


def _verdict(found: Plan, device: Accelerator, compiled: CompiledStep | None) -> list[str]:
    if fits(found, device, compiled):
        return ["", "It fits."]
    peak = found.peak
    if compiled is not None:
        peak = max(compiled.peak, sum(found.state.values()) + sum(found.rollout.values()))
    lines = ["", f"It does not fit: {gib(peak - device.memory)} too much. What helps, each alone, by arithmetic:"]
    lines += [f"  {remedy.option:<48} saves {gib(remedy.saves):>9}" for remedy in remedies(found)]
    return [*lines, "  more devices (--devices) with a larger --mesh.fsdp"]
