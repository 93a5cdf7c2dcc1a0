"""The room's functions, each call compiled as one program: without it, tests spend their time compiling operations.

`from tests.rl import compiled as rl` in a test file; options (strings, numbers, tuples, None by keyword) are
static. Results are NumPy arrays, so that what a test does with them compiles nothing.
"""

import functools
import inspect
from types import ModuleType
from typing import Any

import jax
import numpy as np

from prm_jax import rl


def __getattr__(name: str) -> Any:
    return compiled(rl, name)


def compiled(room: ModuleType, name: str) -> Any:
    """The room's attribute; a function is wrapped so that each call runs as one compiled program."""
    value = getattr(room, name)
    return functools.partial(_call, value) if inspect.isfunction(value) else value


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    options = {k: v for k, v in kwargs.items() if v is None or isinstance(v, str | bool | int | float | tuple)}
    arrays = {k: _array(v) for k, v in kwargs.items() if k not in options}
    out = _program(function, tuple(sorted(options.items())))(*map(_array, args), **arrays)
    return jax.tree.map(_on_host, out)


@functools.cache
def _program(function: Any, options: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(functools.partial(function, **dict(options)))


def _array(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, list) else x


def _on_host(x: Any) -> Any:
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)
