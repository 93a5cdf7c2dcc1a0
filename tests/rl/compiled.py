"""The room's functions, each call compiled as one program: without it, tests spend their time compiling operations.

`from tests.rl import compiled as rl` in a test file; options (strings, numbers, tuples, None by keyword) are
static. Results are NumPy arrays, so that what a test does with them compiles nothing.
"""

import functools
import inspect
from typing import Any

import jax
import numpy as np

from prm_jax import rl


def __getattr__(name: str) -> Any:
    value = getattr(rl, name)
    return functools.partial(_call, name) if inspect.isfunction(value) else value


def _call(name: str, *args: Any, **kwargs: Any) -> Any:
    options = {k: v for k, v in kwargs.items() if v is None or isinstance(v, str | bool | int | float | tuple)}
    arrays = {k: _array(v) for k, v in kwargs.items() if k not in options}
    out = _program(name, tuple(sorted(options.items())))(*map(_array, args), **arrays)
    return jax.tree.map(_on_host, out)


@functools.cache
def _program(name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(functools.partial(getattr(rl, name), **dict(options)))


def _array(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, list) else x


def _on_host(x: Any) -> Any:
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)
