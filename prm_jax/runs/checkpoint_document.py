"""What a checkpoint says about its contents: one JSON document with shape, dtype and fingerprint of every leaf."""

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
    """The leaves of a state by name, NumPy arrays copied to jax.

    Raises:
      TypeError: a leaf is no array, or of a dtype that jax would change.
    """
    leaves = {}
    for name, leaf in named_leaves(state).items():
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise TypeError(f"leaf {name!r} is a {type(leaf).__name__}, no array: put it into the metadata")
        array = leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)
        if array.dtype != leaf.dtype:
            raise TypeError(f"leaf {name!r} is {leaf.dtype}, which jax would turn into {array.dtype}")
        leaves[name] = array
    return leaves


def plain(leaf: jax.Array) -> jax.Array:
    """The leaf as it is stored: keys as their integers."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def describe(step: int, leaves: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a step; waits for the leaves' fingerprints.

    Raises:
      TypeError: the metadata is no JSON.
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
    document = json.loads(json.dumps(document))  # captured now, and exactly what a restore will see
    return {**document, "sha256": digest(document)}


def digest(document: Mapping[str, Any]) -> str:
    """Hash of a document without its own "sha256"."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], *, partial: bool) -> list[str]:
    """How the leaves of a checkpoint differ from those that are wanted, one line each; [] when they fit.

    Args:
      stored: the document's "leaves".
      wanted: arrays or ``jax.ShapeDtypeStruct`` by name.
      partial: the checkpoint may hold more.
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
    """What a stored leaf is restored to: shape, dtype and sharding of its plain form."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def typed(array: jax.Array, wanted: Any, described: Mapping[str, Any]) -> jax.Array:
    """The restored plain array as the leaf that is wanted: integers become keys again."""
    return jax.random.wrap_key_data(array, impl=described["impl"]) if is_key(wanted) else array
