"""Options of the compiler with which equal parameters give equal log-probs in every pass of a program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.models.config import ModelConfig

_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def compiler_options(*configs: ModelConfig, platform: str | None = None) -> dict[str, bool | str] | None:
    """Options for ``jax.jit`` of a program that compares log-probs of models with these configs.

    A forward pass that is differentiated is fused differently from one that is not. In half precision, XLA by default
    skips the rounding between fused operations; with these options every value is rounded to its dtype. On CPUs, it
    computes whole chains of products and elementwise functions in a library whose functions differ from its own in the
    last bit; with these options the library computes products alone.

    Args:
      configs: of the models whose log-probs are compared.
      platform: of the devices, such as "cpu"; None for the default backend's.

    Returns:
      Options by name; None for XLA's defaults.
    """
    found: dict[str, bool | str] = {}
    if any(config.compute_dtype != "float32" for config in configs):
        found["xla_allow_excess_precision"] = False
    if (jax.default_backend() if platform is None else platform) == "cpu":
        found |= {name: value for name, value in _CPU.items() if _is_known(name, value)}
    return found or None


class Program:
    """A function compiled with options of the compiler, which can still be called inside ``jax.jit`` and the like.

    JAX refuses such options inside another compiled function: the whole program has one set. There, the function is
    traced as it is, and the options belong to the outer ``jax.jit``. Attributes are those of the ``jax.jit`` function.
    """

    def __init__(self, function: Callable[..., Any], *, options: dict[str, bool | str] | None, donate: int = 0) -> None:
        """Compiles `function` with `options` on its first call, which consumes the argument numbered `donate`."""
        self._function = function
        self._compiled = jax.jit(function, donate_argnums=donate, compiler_options=options)

    def __call__(self, *args: Any) -> Any:
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return (self._function if traced else self._compiled)(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)


@functools.cache
def _is_known(name: str, value: str) -> bool:
    """Whether this version of XLA's CPU compiler has an option; found by compiling a constant with it."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        lowered = jax.jit(lambda: jnp.zeros(())).lower()
    try:
        lowered.compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
