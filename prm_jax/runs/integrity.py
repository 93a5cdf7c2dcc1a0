"""Fingerprints of arrays that detect damaged checkpoints and do not depend on the number of devices.

Every element's bits are mixed with its global index by a bijection, and the results are summed modulo 2^32. The sum
does not depend on the order, so a sharded array needs no gather, and changing a single element always changes the sum.
It detects corruption, not tampering: it is not a cryptographic hash.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.pytree_paths import is_key, named_leaves
from prm_jax.runs.host_memory import on_device

PyTree = Any


def fingerprint(tree: PyTree) -> dict[str, str]:
    """Hashes every leaf on the devices that hold it.

    Args:
      tree: pytree of JAX arrays of any dtype and sharding, typed PRNG keys included.

    Returns:
      {path: 16 hex digits} with paths as in ``named_leaves``. Equal bits give equal fingerprints whatever the sharding;
      an array without elements gives zeros. Shape and dtype are not included.
    """
    words = {name: _in_turn(_leaf_words(_data(leaf))) for name, leaf in named_leaves(tree).items()}
    return {name: f"{int(w[0]):08x}{int(w[1]):08x}" for name, w in jax.device_get(words).items()}


def _in_turn(x: jax.Array) -> jax.Array:
    """Waits for a result of several CPU devices: programs with collectives that run at the same time can block."""
    devices = x.devices()
    return jax.block_until_ready(x) if len(devices) > 1 and next(iter(devices)).platform == "cpu" else x


def _data(leaf: Any) -> jax.Array:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


@jax.jit
def _leaf_words(x: jax.Array) -> jax.Array:
    words = _as_uint32(on_device(x))
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index + place * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack(
        [jnp.sum(_mix(words, index, seed), dtype=jnp.uint32) for seed in (0x9E3779B1, 0x85EBCA77)]
    )


def _as_uint32(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = jnp.iinfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo(x.dtype).bits
    if bits < 8:  # sub-byte types have no unsigned type of their width, but all fit into eight bits exactly
        x, bits = x.astype(jnp.int8 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float8_e4m3fn), 8
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint32}[bits]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(words: jax.Array, index: jax.Array, seed: int) -> jax.Array:
    # The finaliser of MurmurHash3: for a fixed index a bijection of the word, so every single change is detected.
    h = words ^ (index * np.uint32(seed | 1) + np.uint32(seed >> 3))
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
