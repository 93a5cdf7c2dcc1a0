"""Products with quantised matrices against float32, at the shape of SmolLM2-135M's feed-forward layer.

Each call goes through several matrices, one after the other, as through the layers of a model, so that they come from
memory and not from a cache. Processor time, interleaved, medians of ratios over repeats. Rows: 1 and 16 are decoding in
as many slots, 256 and more are scoring and training.

    python -m experiments.benchmarks.quantized_product     # writes quantized_product.json beside this file
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments import report
from prm_jax.models.quantized_product import product
from prm_jax.models.rounding import round_matrix
from prm_jax.runs.claims import stamp

WIDTH, INNER, LAYERS, REPEATS = 576, 1536, 8, 9
FORMS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "group": WIDTH, "scheme": "symmetric"},
    "int4": {"bits": 4, "group": WIDTH, "scheme": "symmetric"},
    "int4, groups of 32": {"bits": 4, "group": 32, "scheme": "symmetric"},
}


def through(product: Callable[[jax.Array, Any], jax.Array]) -> Callable[[jax.Array, list[Any]], jax.Array]:
    """Compiled: a product per matrix, each with what the one before it gave."""

    def run(x: jax.Array, matrices: list[Any]) -> jax.Array:
        for matrix in matrices:
            x = x + product(x, matrix)[:, :WIDTH] / WIDTH
        return x

    return jax.jit(run)


def seconds(call: Callable[[], Any], count: int) -> float:
    """Processor time of one call."""
    began = time.process_time()
    for _ in range(count):
        out = call()
    jax.block_until_ready(out)
    return (time.process_time() - began) / count


def main() -> None:
    """Measures, prints and writes."""
    w = [jax.random.normal(key, (WIDTH, INNER)) for key in jax.random.split(jax.random.key(0), LAYERS)]
    matrices = {name: [round_matrix(one, fit="largest", **form) for one in w] for name, form in FORMS.items()}
    dense, packed = through(jnp.matmul), through(product)
    table: dict[str, dict[str, float]] = {}
    for rows in (1, 16, 256, 2048):
        x, count = jax.random.normal(jax.random.key(1), (rows, WIDTH)), max(1, 256 // (rows + 30))
        calls = {"float32": lambda x=x: dense(x, w)} | {
            name: lambda x=x, q=q: packed(x, q) for name, q in matrices.items()
        }
        for call in calls.values():
            jax.block_until_ready(call())
        found = [{name: seconds(call, count) for name, call in calls.items()} for _ in range(REPEATS)]
        row = {"float32, ms": 1e3 * statistics.median(one["float32"] for one in found)}
        for name in matrices:
            ratios = sorted(one[name] / one["float32"] for one in found)
            row[name] = report.Estimate(statistics.median(ratios), ratios[REPEATS // 4], ratios[-1 - REPEATS // 4])
        table[f"{rows} rows"] = row
    sizes = {"MiB": {"float32": w[0].nbytes / 2**20, **{name: q[0].nbytes / 2**20 for name, q in matrices.items()}}}
    tables = {"processor time, times float32 [quartiles]": table, "size of the matrix": sizes}
    print(report.render(tables))
    record = {**stamp(), "machine": report.machine(), "repeats": REPEATS, "tables": report.plain(tables)}
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
