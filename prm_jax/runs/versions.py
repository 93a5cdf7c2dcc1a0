"""Which versions of what are installed; imports none of it."""

import importlib.metadata

# What decides whether a resumed run gives the same bits.
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
