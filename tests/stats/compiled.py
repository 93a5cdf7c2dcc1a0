"""The room's functions, each call compiled as one program; see `tests.rl.compiled`."""

from typing import Any

from prm_jax import stats
from tests.rl.compiled import compiled


def __getattr__(name: str) -> Any:
    return compiled(stats, name)
