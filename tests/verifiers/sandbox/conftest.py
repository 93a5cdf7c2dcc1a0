"""One sandbox of each level for all tests; a level that the machine lacks is skipped with its reason."""

import pytest

from prm_jax.verifiers.sandbox import LEVELS, Limits, LocalSandbox, available_levels

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=6.0, memory_bytes=256 << 20)


@pytest.fixture(scope="session", params=LEVELS)
def sandbox(request):
    why_not = available_levels()[request.param]
    if why_not:
        pytest.skip(f"{request.param}: {why_not}")
    with LocalSandbox(request.param, workers=2, limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="session")
def any_sandbox():
    if all(available_levels().values()):
        pytest.skip(f"no sandbox on this machine: {available_levels()}")
    with LocalSandbox(workers=2, limits=LIMITS) as made:
        yield made
