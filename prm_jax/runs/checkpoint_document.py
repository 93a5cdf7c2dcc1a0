"""The JSON document of a checkpoint, with the shape, dtype and fingerprint of every leaf."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.pytree_paths import is_key, named_leaves
from prm_jax.runs import integrity
from prm_jax.runs.versions import library_versions

PyTree = Any
FORMAT = 1


def checked_leaves(state: PyTree) -> dict[str, jax.Array]:
    """The leaves of a state by name, with NumPy arrays converted to JAX arrays.

    Raises:
      TypeError: a leaf is not an array, or has a dtype that JAX would change.
    """
    leaves = {}
    for name, leaf in named_leaves(state).items():
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise TypeError(f"leaf {name!r} is a {type(leaf).__name__}, not an array: put it into the metadata")
        array = leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)
        if array.dtype != leaf.dtype:
            raise TypeError(f"leaf {name!r} is {leaf.dtype}, which JAX would convert to {array.dtype}")
        leaves[name] = array
    return leaves


def plain(leaf: jax.Array) -> jax.Array:
    """The leaf as it is stored: PRNG keys as their integer data."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def describe(step: int, leaves: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the document of a step; blocks until the leaves' fingerprints are computed.

    Raises:
      TypeError: the metadata is not JSON.
    """
    digests = integrity.fingerprint(dict(leaves))
    described = {}
    for name, leaf in leaves.items():
        described[name] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "hash": digests[name]}
        if is_key(leaf):
            described[name]["impl"] = str(jax.random.key_impl(leaf))
    document = {
        "format": FORMAT,
        "step": step,
        "metadata": dict(metadata),
        "leaves": described,
        "versions": library_versions(),
    }
    document = json.loads(json.dumps(document))  # a copy, identical to what a restore reads
    return {**document, "sha256": digest(document)}


def digest(document: Mapping[str, Any]) -> str:
    """Hash of a document, excluding its "sha256" entry."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], *, partial: bool) -> list[str]:
    """Differences between the leaves of a checkpoint and the expected ones, one line each; [] if they match.

    Args:
      stored: the document's "leaves".
      wanted: arrays or ``jax.ShapeDtypeStruct`` by name.
      partial: allow the checkpoint to hold more leaves.
    """
    found = [f"{name}: not in the checkpoint" for name in wanted if name not in stored]
    if not partial:
        found += [f"{name}: only in the checkpoint" for name in stored if name not in wanted]
    for name, leaf in wanted.items():
        if name not in stored:
            continue
        shape, dtype = tuple(stored[name]["shape"]), stored[name]["dtype"]
        if shape != tuple(leaf.shape):
            found.append(f"{name}: shape {shape} in the checkpoint, {tuple(leaf.shape)} expected")
        elif dtype != str(leaf.dtype):
            found.append(f"{name}: dtype {dtype} in the checkpoint, {leaf.dtype} expected")
    return found


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding to which a stored leaf is restored, before keys are wrapped again."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def typed(array: jax.Array, wanted: Any, described: Mapping[str, Any]) -> jax.Array:
    """The restored array as the expected leaf: integer data becomes PRNG keys again."""
    return jax.random.wrap_key_data(array, impl=described["impl"]) if is_key(wanted) else array
