"""Process rewards in JAX.

Importing this package imports nothing heavy and touches no device; import the rooms by name:
``prm_jax.rl``, ``prm_jax.stats``, ``prm_jax.search``, ``prm_jax.pallas``, ``prm_jax.models``, ``prm_jax.data``,
``prm_jax.verifiers``, ``prm_jax.runs``, ``prm_jax.prm``, ``prm_jax.prime``.
"""

from prm_jax._version import __version__

__all__ = ["__version__"]
