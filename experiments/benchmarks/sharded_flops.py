"""FLOPs per device on meshes of 1 to 8 devices, against the ideal: those of one device divided by their number.

    python experiments/benchmarks/sharded_flops.py                 # all 20 meshes, three programs: 20 minutes
    python experiments/benchmarks/sharded_flops.py --mesh 1 8 1    # data, fsdp, tensor; may be repeated
    python experiments/benchmarks/sharded_flops.py --layers constraints --mesh 1 8 1

Programs are compiled for fake CPU devices and not run; FLOPs are those of XLA's cost analysis, in which the body of a
loop counts once. What was measured is in sharded_flops.json, sharded_flops_constraints.json and docs/training.md.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import re
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp

from prm_jax import models, prime
from prm_jax.models.sharding import batch_sharding, shardings_for
from prm_jax.prime.advantages import make_advantage
from prm_jax.prime.policy import PolicyPhase, make_policy_loss
from prm_jax.prime.shaping import make_reward
from prm_jax.runs.hlo_accounting import Collective, collectives
from prm_jax.runs.learner import Learner, make_optimizer

ROWS, TOKENS = 16, 128
CONFIG = models.ModelConfig(
    vocab_size=1152, hidden_size=256, intermediate_size=704, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=32,
    attention_bias=True, remat="full",
)  # fmt: skip
SIZES = (1, 2, 4, 8)
MESHES = tuple(
    (data, fsdp, tensor)
    for count in SIZES
    for data in SIZES
    for fsdp in SIZES
    for tensor in SIZES
    if data * fsdp * tensor == count
)

Program = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program.

    Attributes:
      flops: per device.
      temporaries: bytes per device.
      arrays: (dtype, shape) of every array on a device that the program computes.
      collectives: what it sends.
    """

    flops: float
    temporaries: int
    arrays: frozenset[tuple[str, tuple[int, ...]]]
    collectives: tuple[Collective, ...]

    @property
    def scores(self) -> int:
        """Elements of the largest [..., T, T] array on a device."""
        return max((math.prod(shape) for _, shape in self.arrays if shape[-2:] == (TOKENS, TOKENS)), default=0)

    @property
    def sent(self) -> int:
        """Bytes that a device must send in all collectives, loops counted by their iterations."""
        return sum(one.sent for one in self.collectives)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    axes = ("DATA", "FSDP", "TENSOR")
    parser.add_argument("--mesh", type=int, nargs=3, action="append", metavar=axes, help="only this mesh; repeatable")
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--layers", choices=["manual", "constraints"], default="manual", help="see ModelConfig.layers")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.programs:
        found[name] = _table(name, [tuple(sizes) for sizes in options.mesh or MESHES], options.layers)
    if options.json:
        setting = {"machine": platform.machine(), "python": platform.python_version(), "jax": jax.__version__}
        figures = {"setting": setting, "layers": options.layers, "rows": ROWS, "tokens": TOKENS, "programs": found}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _table(name: str, meshes: Any, layers: Any) -> dict[str, dict[str, float]]:
    config = dataclasses.replace(CONFIG, layers=layers)
    alone = measure(PROGRAMS[name], (1, 1, 1), config)
    titles = f"{'FLOPs / ideal':>15}{'scores':>12}{'temporaries, MiB':>18}{'sent, MiB':>11}{'/ minimum':>11}"
    print(f"{name}\n  {'data, fsdp, tensor':20}{titles}")
    rows = {}
    for sizes in meshes:
        one = measure(PROGRAMS[name], sizes, config)
        least = minimum(name, sizes)
        row = {
            "ratio": round(one.flops * math.prod(sizes) / alone.flops, 3),
            "scores": one.scores,
            "temporaries_mib": round(one.temporaries / 2**20, 1),
            "sent_mib": round(one.sent / 2**20, 1),
            "sent_ratio": round(one.sent / least, 3) if least else 1.0,
        }
        rows[",".join(map(str, sizes))] = row
        figures = f"{row['ratio']:>15.3f}{row['scores']:>12,}{row['temporaries_mib']:>18.1f}{row['sent_mib']:>11.1f}"
        print(f"  {sizes!s:20}{figures}{row['sent_ratio']:>11.3f}", flush=True)
    return rows


def measure(
    program: Callable[..., Program], sizes: tuple[int, int, int], config: models.ModelConfig = CONFIG
) -> Measured:
    """Compiles a program for a mesh (data, fsdp, tensor) of fake devices."""
    run, arguments = program(models.make_mesh(*sizes), config)
    compiled = run.lower(*arguments).compile()  # type: ignore[attr-defined]
    text = compiled.as_text()
    arrays = re.findall(r"= (\w+)\[([\d,]+)\]\S* (?!parameter)", text)
    shapes = frozenset((dtype, tuple(map(int, dims.split(",")))) for dtype, dims in arrays)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return Measured(compiled.cost_analysis()["flops"], memory, shapes, tuple(collectives(text)))


def minimum(name: str, sizes: tuple[int, int, int]) -> float:
    """Bytes that a device must send in a program, with full rematerialisation and everything in float32.

    Layers are gathered in every pass, the head once per forward pass; gradients are scattered over fsdp and summed over
    data; embeddings are exchanged over fsdp; over tensor, the residual stream is gathered before and scattered after
    attention and MLP, summed once in the head's backward pass. Norms, biases and adapters are left out.
    """
    data, fsdp, tensor = sizes
    forward, learners = {"gradient": (1, 1), "step": (3, 2), "step-lora": (3, 2)}[name]
    trained = 0 if name == "step-lora" else learners
    shapes = jax.eval_shape(lambda key: models.init_params(CONFIG, key), jax.random.key(0))["layers"]
    layers = sum(x.size for x in jax.tree.leaves(shapes) if x.ndim == 3)
    table, stream = CONFIG.vocab_size * CONFIG.hidden_size, ROWS * TOKENS * CONFIG.hidden_size / (data * fsdp)
    whole = (fsdp - 1) / fsdp / tensor
    weights = whole * (layers * (forward + learners) + table * forward)
    gradients = whole * trained * (layers + table)
    sums = 2 * (data - 1) / data / (fsdp * tensor) * trained * (layers + 2 * table)
    embeddings = stream * (fsdp - 1) / fsdp * (forward + trained)
    in_layers = CONFIG.num_layers * (4 * forward + 7 * learners)
    over_tensor = stream * (tensor - 1) / tensor * (in_layers + 2 * forward + 2 * learners + trained)
    return 4 * (weights + gradients + sums + embeddings + over_tensor)


def gradient(mesh: Any, config: models.ModelConfig = CONFIG) -> Program:
    """``value_and_grad`` of the sum of ``token_logprobs``, and its abstract arguments."""
    params = _params(config, mesh)

    def loss(params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return -models.token_logprobs(config, params, tokens, mask).sum()

    run = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings_for(params, mesh)))
    return run, (params, _rows(mesh, jnp.int32, TOKENS), _rows(mesh, jnp.bool_, TOKENS))


def prime_step(mesh: Any, config: models.ModelConfig = CONFIG, rank: int = 0) -> Program:
    """The PRIME step with an online PRM, full or with adapters of this rank, and its abstract arguments."""
    params = _params(config, mesh)
    lora = models.LoRAConfig(rank=rank, alpha=16.0) if rank else None

    def initial(base: Any) -> prime.State:
        return prime.init_state(_setup(config, lora, base), prime.Frozen(base, base), jax.random.key(0))

    state = jax.eval_shape(initial, params)
    shardings = shardings_for(state, mesh)
    batch = prime.Batch(
        tokens=_rows(mesh, jnp.int32, TOKENS), mask=_rows(mesh, jnp.bool_, TOKENS), keep=_rows(mesh, jnp.bool_),
        outcome=_rows(mesh, jnp.float32), group_ids=_rows(mesh, jnp.int32), step_ids=_rows(mesh, jnp.int32, TOKENS),
    )  # fmt: skip
    step = prime.make_step(_setup(config, lora, params), shardings=shardings)
    return step, (_placed(state, shardings), prime.Frozen(params, params), batch)


PROGRAMS: dict[str, Callable[..., Program]] = {
    "gradient": gradient,
    "step": prime_step,
    "step-lora": lambda mesh, config: prime_step(mesh, config, rank=16),
}


def _setup(config: models.ModelConfig, lora: models.LoRAConfig | None, base: Any) -> prime.Setup:
    options = prime.Options()
    learner = Learner(config, make_optimizer(1e-6), lora)
    policy = PolicyPhase(learner, options.policy, make_policy_loss(options.policy), 1.0, ways=1)
    source = prime.ImplicitPRM(learner, base, options.prm, policy_config=config)
    reward, advantage = make_reward(options.reward), make_advantage(options.advantage)
    return prime.Setup(policy, source, None, reward, advantage, options.advantage)


def _params(config: models.ModelConfig, mesh: Any) -> Any:
    params = jax.eval_shape(lambda key: models.init_params(config, key), jax.random.key(0))
    return _placed(params, shardings_for(params, mesh))


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _rows(mesh: Any, dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((ROWS, *more), dtype, sharding=batch_sharding(mesh))


if __name__ == "__main__":
    main()
