"""Versions of installed libraries, found without importing them."""

import importlib.metadata

# Libraries that affect whether a resumed run is bit-identical.
CORE = ("prm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def library_versions(names: tuple[str, ...] = CORE) -> dict[str, str]:
    """{distribution: version} of those among `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
