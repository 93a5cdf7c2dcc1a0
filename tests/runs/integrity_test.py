"""The fingerprint: every single-bit change is seen, order matters, sharding does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.pytree_paths import named_leaves
from prm_jax.runs.integrity import fingerprint

_MASK = 0xFFFFFFFF


def _slow(words: list[int]) -> str:
    sums = [0, 0]
    for which, seed in enumerate((0x9E3779B1, 0x85EBCA77)):
        for index, word in enumerate(words):
            h = word ^ ((index * (seed | 1) + (seed >> 3)) & _MASK)
            h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
            h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
            sums[which] = (sums[which] + (h ^ (h >> 16))) & _MASK
    return f"{sums[0]:08x}{sums[1]:08x}"


def test_fingerprint_equals_a_slow_loop():
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    assert fingerprint({"x": jnp.asarray(x)}) == {"x": _slow(x.view(np.uint32).ravel().tolist())}
    half = jnp.asarray(x, jnp.bfloat16)
    assert fingerprint(half) == {"value": _slow(np.asarray(half).view(np.uint16).ravel().tolist())}


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16", "float32",
              "complex64", "float8_e4m3fn", "int4", "uint4", "float4_e2m1fn"]
)  # fmt: skip
def test_a_change_of_any_element_of_any_dtype_is_detected(dtype):
    x = np.random.default_rng(1).integers(0, 2, size=(4, 3))
    seen = {fingerprint(jnp.asarray(x, dtype))["value"]}
    for index in np.ndindex(4, 3):
        changed = x.copy()
        changed[index] = 1 - x[index]
        seen.add(fingerprint(jnp.asarray(changed, dtype))["value"])
    assert len(seen) == 13


def test_single_bits_swapped_rows_and_signs_of_zero_are_detected():
    x = jax.random.normal(jax.random.key(0), (64, 8))
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rng, digest = np.random.default_rng(2), fingerprint(x)
    for _ in range(40):
        row, column, bit = rng.integers(64), rng.integers(8), rng.integers(32)
        flipped = bits.at[row, column].set(bits[row, column] ^ jnp.uint32(1 << int(bit)))
        assert fingerprint(jax.lax.bitcast_convert_type(flipped, jnp.float32)) != digest
    assert fingerprint(x[::-1]) != digest and fingerprint(x.T.reshape(64, 8)) != digest
    assert fingerprint(jnp.zeros(3)) != fingerprint(-jnp.zeros(3))


def test_the_fingerprint_does_not_depend_on_the_sharding():
    devices = np.array(jax.devices())
    x, keys = jax.random.normal(jax.random.key(0), (16, 8)), jax.random.split(jax.random.key(1), 8)
    for shape, spec in (((8, 1), P("a")), ((2, 4), P("b", "a")), ((4, 2), P(None, ("a", "b")))):
        mesh = jax.sharding.Mesh(devices.reshape(shape), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        assert fingerprint(placed) == fingerprint(x)
        placed_keys = jax.device_put(keys, NamedSharding(mesh, P(spec[0])))
        assert fingerprint(placed_keys) == fingerprint(keys)


def test_names_are_paths_in_the_tree():
    tree = {"b": [jnp.zeros(1), {"c": jnp.ones(2)}], "a": jnp.zeros((0, 3)), "none": None}
    assert list(named_leaves(tree)) == ["a", "b/0", "b/1/c"]
    assert fingerprint(tree)["a"] == "0" * 16
    with pytest.raises(ValueError, match="both called"):
        named_leaves({"a/b": 1, "a": {"b": 2}})
