"""A run's step compiled ahead of time for devices that need not be there: its memory, communication and kernels.

For TPUs that takes ``libtpu``, which compiles for a topology on any Linux host; steps on CPUs are compiled for as many
fake devices. There is no such compiler for GPUs. The work is done in a child process, so that a TPU's runtime never
becomes a backend of this one.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import prm_jax
from prm_jax.config_io import to_yaml
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.prime.accelerators import Accelerator
from prm_jax.prime.options import Options
from prm_jax.prime.start import offloads

SLICES = {
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v5p": {
        4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
        1024: "8x8x16",
    },
}  # fmt: skip
SLICES["v6e"] = SLICES["v5e"]
"""Shape of a slice by kind and number of chips; fewer than four chips are some of the smallest slice."""

_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler says about a step, in bytes and operations per device.

    Attributes:
      target: what it was compiled for, such as "v5p:4x4x4".
      compiler: name and version.
      seconds: that compiling took.
      memory: bytes by use: arguments (state, reference and batch), temporaries, output, aliased (output that takes the
        arguments' place), program; empty where the compiler refused.
      collectives: bytes that a device sends in a step, by kind.
      operations: in a step, by where they are computed; see ``runs.hlo_operations``.
      kernels: executions of each kernel in a step; TPUs only.
      largest_arrays: (bytes, dtype and shape).
      used_bytes: memory of a program that the compiler refused because it does not fit; 0 where it fits.
      refusal: the compiler's message then.
    """

    target: str
    compiler: str
    seconds: float
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    operations: dict[str, float] = dataclasses.field(default_factory=dict)
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    largest_arrays: tuple[tuple[int, str], ...] = ()
    used_bytes: float = 0.0
    refusal: str = ""

    @property
    def peak(self) -> float:
        """Bytes in use: arguments, temporaries, output that is not aliased, and the program; inf if that is unknown."""
        if not self.memory:
            return self.used_bytes or float("inf")
        memory = self.memory
        return memory["arguments"] + memory["temporaries"] + memory["output"] - memory["aliased"] + memory["program"]


def missing_compiler(device: Accelerator) -> str | None:
    """Why steps for a device cannot be compiled here, and what to do; None where they can."""
    if device.platform == "gpu":
        return f"there is no compiler for {device.name} without the device"
    if device.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed: pip install 'prm-jax[tpu]' brings the one of this jax (Linux only)"
    return None


def topology_of(device: Accelerator, devices: int, shape: str = "") -> str:
    """The topology's name, such as "v5p:4x4x4"; "" for CPUs.

    Args:
      device: kind.
      devices: number of chips.
      shape: of the slice; "" for the usual one of that size.

    Raises:
      UserError: no usual slice has that many chips, or the shape does not.
    """
    if device.platform != "tpu":
        return ""
    known = SLICES[device.name]
    if shape:
        sizes = [int(size) if size.isdigit() else 0 for size in shape.split("x")]
        product = 1
        for size in sizes:
            product *= size
        if product < devices or len(sizes) != len(next(iter(known.values())).split("x")):
            raise UserError(
                f"--topology {shape}: expected the chips of a {device.name} slice along each dimension, such as "
                f"{known.get(devices, known[16])}, with at least the {devices} of --devices"
            )
        return f"{device.name}:{shape}"
    if devices > 4 and devices not in known:
        raise UserError(
            f"--devices {devices}: {device.name} slices have {', '.join(map(str, known))} chips; give the shape of "
            "another one with --topology"
        )
    return f"{device.name}:{known[max(devices, 4)]}"


def compile_step(
    options: Options,
    config: ModelConfig,
    device: Accelerator,
    *,
    devices: int = 1,
    prm_config: ModelConfig | None = None,
    topology: str = "",
    keep: pathlib.Path | None = None,
) -> CompiledStep:
    """Compiles a run's whole step; takes minutes for a large model.

    Args:
      options: of the run.
      config: the policy's architecture, its ``dtype`` that of the weights in the file.
      device: see `missing_compiler`.
      devices: number of devices; the mesh must use all of them.
      prm_config: the online PRM's architecture where it has one of its own.
      topology: see `topology_of`.
      keep: file for the compiled program's text.

    Raises:
      UserError: there is no compiler for the device, no such topology, or the step cannot be compiled.
    """
    reason = missing_compiler(device)
    if reason:
        raise UserError(f"the step cannot be compiled for {device.name}: {reason}")
    away = offloads(options)
    if away:
        raise UserError(
            f"{', '.join(away)}: steps with arrays in host memory are planned by arithmetic; leave --compile out"
        )
    name = topology_of(device, devices, topology)
    with tempfile.TemporaryDirectory(prefix="prm_jax_plan_") as folder:
        directory = pathlib.Path(folder)
        options = _with_configs(options, config, prm_config, directory)
        (directory / "options.yaml").write_text(to_yaml(options))
        (directory / "request.json").write_text(json.dumps({"topology": name, "devices": devices}))
        _run_child(directory, 1 if name else devices)
        answer = json.loads((directory / "result.json").read_text())
        if keep is not None and (directory / "program.txt").exists():
            keep.write_text((directory / "program.txt").read_text())
    fields = {field.name: answer[field.name] for field in dataclasses.fields(CompiledStep) if field.name in answer}
    fields["largest_arrays"] = tuple((size, shape) for size, shape in answer.get("largest_arrays", ()))
    return CompiledStep(
        target=name or f"{devices} fake CPU device{'s' if devices > 1 else ''}",
        **fields,
    )


def _with_configs(
    options: Options, config: ModelConfig, prm_config: ModelConfig | None, directory: pathlib.Path
) -> Options:
    """Options that name the configurations, which are written as files."""

    def written(name: str, given: ModelConfig) -> str:
        path = directory / name / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(given.to_hf() | {"dtype": given.dtype}))
        return str(path)

    model = dataclasses.replace(options.model, path=written("policy", config))
    prm = dataclasses.replace(options.prm, path="" if prm_config is None else written("prm", prm_config))
    return dataclasses.replace(options, model=model, prm=prm)


def _run_child(directory: pathlib.Path, fake_devices: int) -> None:
    """Runs the compiler's process.

    Raises:
      UserError: it failed; with the last lines of what it said.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={fake_devices}".strip()
    package = str(pathlib.Path(prm_jax.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, **_TPU_ENVIRONMENT, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "prm_jax.prime.plan_child", str(directory)],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0 or not (directory / "result.json").exists():
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        ended = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise UserError(f"the step could not be compiled: the compiler's process {ended}: " + "\n".join(lines[-12:]))
