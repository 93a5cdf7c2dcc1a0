"""Tree search against mctx: the same nodes evaluated by the same evaluator, at the setting of AlphaMath.

    pip install mctx
    python experiments/benchmarks/search.py            # B = 1, 64, 1024; a few minutes on one core
    python experiments/benchmarks/search.py --smoke    # seconds, only to see that it runs

5 children, 40 simulations, depth 8: 200 nodes a question. mctx evaluates one node a simulation, so it takes 200 of
them; prm_jax evaluates the five children of a leaf in one call. `prm_jax, one child at a time` does the work of mctx's
policies in their way: 200 simulations of one evaluation each. The evaluator is a hash of the node's number, so that
what is measured is the tree. All are compiled once and take turns within each repeat; a turn calls as often as fills a
twentieth of a second and takes the mean, so that a search of a fraction of a millisecond is not measured with the
caches that its neighbour left; `--cold` calls once a turn. Seconds are wall clock and, on a busy machine more to the
point, processor time. What was measured is in search.md.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import search as s

WIDTH, SIMULATIONS, DEPTH = 5, 40, 8
NODES = WIDTH * SIMULATIONS
Run = tuple[Callable[..., Any], jax.Array]


def main() -> None:
    """Measures, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="at B = 1024 about half as many")
    parser.add_argument("--cold", action="store_true", help="one call a turn")
    parser.add_argument("--out", type=pathlib.Path, help="write the numbers as JSON")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {"setting": _setting(), "batches": {}}
    for batch in (2,) if options.smoke else (1, 64, 1024):
        repeats = 2 if options.smoke else options.repeats if batch < 1024 else options.repeats // 2 + 1
        results["batches"][str(batch)] = measured = _measure(_contestants(batch), repeats, options.cold)
        _print(batch, measured)
    results["memory"] = _memory(2 if options.smoke else 64)
    print("temporary memory of the compiled search, bytes a question, by floats kept at each node:", results["memory"])
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _contestants(batch: int) -> dict[str, Run]:
    runs: dict[str, Run] = {
        "prm_jax": ours(batch),
        "prm_jax, one child at a time": ours_one_at_a_time(batch),
    }
    try:
        import mctx
    except ModuleNotFoundError:
        print("mctx is not installed (pip install mctx): measuring prm_jax alone")
        return runs
    runs["mctx gumbel_muzero"] = theirs(mctx.gumbel_muzero_policy, batch)
    runs["mctx muzero"] = theirs(mctx.muzero_policy, batch)
    return runs


def children(state: jax.Array) -> jax.Array:
    """[B] -> [B, C]: numbers of a node's children."""
    x = state[:, None] * jnp.uint32(2654435761) + jnp.arange(1, WIDTH + 1, dtype=jnp.uint32) * jnp.uint32(40503)
    return (x ^ (x >> 15)) * jnp.uint32(0x2C1B3C6D)


def unit(state: jax.Array) -> jax.Array:
    """A number in [0, 1) from a node's number: its prior; twice it less one is its value."""
    return (state >> 8).astype(jnp.float32) / 2**24


def roots(batch: int) -> jax.Array:
    """[B] numbers."""
    return jnp.arange(1, batch + 1, dtype=jnp.uint32) * jnp.uint32(7919)


def ours(batch: int) -> Run:
    """AlphaMath's search: all children of a leaf at once."""

    def expand(leaf: s.Leaf) -> s.Expansion:
        child = children(leaf.state)
        prior = unit(child)
        no = jnp.zeros(prior.shape, bool)
        return s.Expansion(prior, 2 * prior - 1, no, ~no, state=child)

    def run(state: jax.Array) -> s.Tree:
        tree = s.init_tree(batch, 1 + NODES, value=2 * unit(state) - 1, state=state)
        return s.search(tree, expand, SIMULATIONS, s.puct(1.25), width=WIDTH, max_depth=DEPTH)

    return run, roots(batch)


def ours_one_at_a_time(batch: int) -> Run:
    """MuZero's search: the leaf itself is evaluated, its children get priors."""

    def expand(leaf: s.Leaf) -> s.Expansion:
        child = children(leaf.state)
        prior = jax.nn.softmax(unit(child))
        no = jnp.zeros(prior.shape, bool)
        return s.Expansion(prior, jnp.zeros(prior.shape), no, ~no, node_value=2 * unit(leaf.state) - 1, state=child)

    def run(state: jax.Array) -> s.Tree:
        tree = s.init_tree(batch, 1 + WIDTH * (NODES + 1), state=state)
        score = s.minmax(s.alphazero(), over="parent")
        return s.search(tree, expand, NODES + 1, score, width=WIDTH, max_depth=DEPTH + 1)

    return run, roots(batch)


def theirs(policy: Callable[..., Any], batch: int, floats: int = 0) -> Run:
    """A policy of mctx; `floats` more numbers are kept at each node."""
    import mctx

    def recurrent(params: Any, key: jax.Array, action: jax.Array, embedding: Any) -> Any:
        state = jnp.take_along_axis(children(embedding[0]), action[:, None], axis=1)[:, 0]
        zero = jnp.zeros(batch)
        out = mctx.RecurrentFnOutput(
            reward=zero, discount=zero + 1, prior_logits=unit(children(state)), value=2 * unit(state) - 1
        )
        return out, (state, embedding[1] + 1)

    def run(state: jax.Array) -> Any:
        root = mctx.RootFnOutput(
            prior_logits=unit(children(state)), value=2 * unit(state) - 1,
            embedding=(state, jnp.zeros((batch, floats))),
        )  # fmt: skip
        return policy(
            params=(), rng_key=jax.random.key(0), root=root, recurrent_fn=recurrent, num_simulations=NODES,
            max_depth=DEPTH,
        ).search_tree  # fmt: skip

    return run, roots(batch)


def _measure(runs: dict[str, Run], repeats: int, cold: bool) -> dict[str, dict[str, Any]]:
    compiled = {name: jax.jit(run).lower(state).compile() for name, (run, state) in runs.items()}
    calls = {name: 1 if cold else _calls(compiled[name], state) for name, (_, state) in runs.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for name, (_, state) in runs.items():
        jax.block_until_ready(compiled[name](state))
    for repeat in range(repeats):
        for name in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
            cpu, begun = time.process_time(), time.perf_counter()
            for _ in range(calls[name]):
                jax.block_until_ready(compiled[name](runs[name][1]))
            wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
            times[name].append((wall / calls[name], cpu / calls[name]))
    return {
        name: {
            "wall_ms": [round(1e3 * wall, 3) for wall, _ in taken],
            "cpu_ms": [round(1e3 * cpu, 3) for _, cpu in taken],
            "calls": calls[name],
            "temporary_bytes": _temporary(compiled[name]),
        }
        for name, taken in times.items()
    }


def _calls(compiled: Any, state: jax.Array) -> int:
    """How many calls fill a turn."""
    jax.block_until_ready(compiled(state))
    begun = time.perf_counter()
    jax.block_until_ready(compiled(state))
    return max(1, round(0.05 / (time.perf_counter() - begun)))


def _memory(batch: int) -> dict[str, dict[str, int]]:
    """Temporary bytes a question with little and with much kept at each node; prm_jax keeps nothing there."""
    found = {}
    run, state = ours(batch)
    found["prm_jax"] = {"any": _temporary(jax.jit(run).lower(state).compile()) // batch}
    try:
        import mctx
    except ModuleNotFoundError:
        return found
    found["mctx muzero"] = {}
    for floats in (0, 256, 1024):
        run, state = theirs(mctx.muzero_policy, batch, floats)
        compiled = jax.jit(lambda x, run=run: jax.tree.map(jnp.sum, run(x))).lower(state).compile()
        found["mctx muzero"][str(floats)] = _temporary(compiled) // batch
    return found


def _temporary(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes + compiled.memory_analysis().output_size_in_bytes)


def _setting() -> dict[str, Any]:
    device = jax.devices()[0]
    packages = {}
    for name in ("jax", "mctx"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **packages,
        "children": WIDTH, "simulations": SIMULATIONS, "depth": DEPTH, "nodes": NODES,
    }  # fmt: skip


def _print(batch: int, measured: dict[str, dict[str, Any]]) -> None:
    print(f"\nB = {batch}, {NODES} nodes a question, {len(measured['prm_jax']['wall_ms'])} repeats")
    print(f"{'':30s} {'wall ms: median':>16s} {'from':>9s} {'to':>9s} {'CPU ms: median':>15s} {'CPU, x prm_jax':>15s}")
    base = np.array(measured["prm_jax"]["cpu_ms"])
    for name, taken in measured.items():
        wall, cpu = taken["wall_ms"], taken["cpu_ms"]
        ratio = statistics.median((np.array(cpu) / base).tolist())
        print(
            f"{name:30s} {statistics.median(wall):16.2f} {min(wall):9.2f} {max(wall):9.2f} "
            f"{statistics.median(cpu):15.2f} {ratio:15.1f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
