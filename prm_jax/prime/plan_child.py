"""Compiles a run's step in a process of its own: ``python -m prm_jax.prime.plan_child DIRECTORY``.

The directory holds ``request.json`` and ``options.yaml``, written by ``plan_compile``, and gets ``result.json``. The
process computes on the CPU; a TPU's compiler is loaded for a topology and touches no device.
"""

import contextlib
import json
import pathlib
import re
import sys
import time
from typing import Any

import jax

from prm_jax.config_io import load_yaml
from prm_jax.models.sharding import make_mesh
from prm_jax.prime.abstract import abstract_step
from prm_jax.prime.options import Options
from prm_jax.prime.plan import planned_configs
from prm_jax.runs.hlo_accounting import collective_bytes, largest_arrays
from prm_jax.runs.hlo_operations import kernel_calls, operations


def main(directory: pathlib.Path) -> None:
    """Answers the request in a directory."""
    request = json.loads((directory / "request.json").read_text())
    options = load_yaml(directory / "options.yaml", Options())
    answer = compile_step(options, request["topology"], request["devices"], directory)
    (directory / "result.json").write_text(json.dumps(answer))


def compile_step(options: Options, topology: str, count: int, directory: pathlib.Path) -> dict[str, Any]:
    """What the compiler says about the step.

    Args:
      options: of the run; ``model.path`` and ``prm.path`` are configurations.
      topology: such as "v5p:4x4x4", or "" for this process's own devices.
      count: number of devices, the first ones of the topology.
      directory: gets ``program.txt``, the compiled program.
    """
    config, prm_config = planned_configs(options)
    devices, compiler = _devices(topology)
    sizes = options.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, expert=sizes.expert, devices=devices[:count])
    begun = time.monotonic()
    # A single device's arrays have no mesh that kernels could learn the device from.
    with jax.set_mesh(mesh) if count == 1 else contextlib.nullcontext():
        step, arguments = abstract_step(options, config, prm_config, mesh=mesh)
        traced = step.trace(*arguments)  # type: ignore[attr-defined]
        lowered = traced.lower(lowering_platforms=(devices[0].platform,))
    answer: dict[str, Any] = {"compiler": compiler, "device_kind": devices[0].device_kind}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return answer | {"seconds": time.monotonic() - begun, "refusal": str(error), **_used(str(error))}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    (directory / "program.txt").write_text(text)
    return answer | {
        "seconds": time.monotonic() - begun,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "output": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
        "collectives": collective_bytes(text),
        "operations": operations(text),
        "kernels": kernel_calls(text),
        "largest_arrays": [
            [size, f"{dtype}[{','.join(map(str, dims))}]"] for size, (dtype, dims) in largest_arrays(text, 5)
        ],
    }


def _devices(topology: str) -> tuple[list[Any], str]:
    if not topology:
        return jax.devices(), f"XLA of jax {jax.__version__}"
    import importlib.metadata

    from jax.experimental import topologies

    return list(topologies.get_topology_desc(topology, "tpu").devices), f"libtpu {importlib.metadata.version('libtpu')}"


def _used(message: str) -> dict[str, float]:
    """{"used_bytes": what the program needs} from the compiler's refusal, as far as it says so."""
    found = re.search(r"(?:Used |\()([\d.]+)([KMGT])(?: of|\) exceeds)", message)
    return {"used_bytes": float(found.group(1)) * 1024.0 ** ("KMGT".index(found.group(2)) + 1)} if found else {}


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
