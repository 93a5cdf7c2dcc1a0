"""Memory, arithmetic and bandwidth of the devices that `prime.plan` knows; published figures, per JAX device."""

import dataclasses

from prm_jax.errors import UserError
from prm_jax.resolve import nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One JAX device.

    Attributes:
      name: as `find_accelerator` takes it.
      memory: bytes that a program can use, after what the runtime keeps.
      flops: dense bfloat16 operations per second.
      bandwidth: bytes per second between memory and cores.
      link: bytes per second that one device sends to its neighbours, all links of one direction together.
      float32_share: speed of float32 products at JAX's default precision, as a share of `flops`.
      platform: "tpu", "gpu" or "cpu".
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    float32_share: float
    platform: str


ACCELERATORS = {
    device.name: device
    for device in (
        # TPUs: Cloud TPU documentation, pages v5e, v5p and v6e: bf16 peak, memory bandwidth, and bandwidth of all links
        # of a chip (1,600, 4,800 and 3,200 Gbit/s). Usable memory: the limit that libtpu's compiler reports.
        # float32 products run in bfloat16 at JAX's default precision.
        Accelerator("v5e", 15.75 * GIB, 197e12, 819e9, 200e9, 1.0, "tpu"),
        Accelerator("v5p", 95.7 * GIB, 459e12, 2765e9, 600e9, 1.0, "tpu"),
        Accelerator("v6e", 31.0 * GIB, 918e12, 1600e9, 400e9, 1.0, "tpu"),
        # GPUs: NVIDIA data sheets of A100 80GB SXM, H100 SXM and H200 SXM: dense bf16, memory bandwidth, NVLink (600
        # and 900 GB/s, both directions). XLA uses 75 % of the memory by default, and the 92 % counted here with
        # XLA_PYTHON_CLIENT_MEM_FRACTION=.92. float32 products run as TF32, at half the rate.
        Accelerator("a100", 0.92 * 80e9, 312e12, 2039e9, 300e9, 0.5, "gpu"),
        Accelerator("h100", 0.92 * 80e9, 989e12, 3350e9, 450e9, 0.5, "gpu"),
        Accelerator("h200", 0.92 * 141e9, 989e12, 4800e9, 450e9, 0.5, "gpu"),
        # No particular machine: 8 cores with two AVX-512 units at 2.5 GHz, half of their 160 GFLOP/s of float32 each
        # (bfloat16 is computed in float32), two channels of DDR5-4800, 32 GiB.
        Accelerator("cpu", 32.0 * GIB, 640e9, 76.8e9, 10e9, 1.0, "cpu"),
    )
}  # fmt: skip
"""Name -> device."""


def find_accelerator(name: str) -> Accelerator:
    """The device of that name; case and a prefix such as "tpu-" do not matter.

    Raises:
      UserError: there is none; the nearest is suggested.
    """
    plain = name.lower().replace("tpu", "").replace("nvidia", "").strip(" -_")
    if plain in ACCELERATORS:
        return ACCELERATORS[plain]
    raise UserError(
        f"unknown device --device {name}: {nearest(plain, ACCELERATORS)}there are {', '.join(ACCELERATORS)}"
    )
