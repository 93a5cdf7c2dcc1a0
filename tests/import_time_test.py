"""What importing costs, in units of importing jax: processor time, so that other work of the machine does not count."""

import resource
import subprocess
import sys

import pytest


def seconds(*words: str) -> float:
    """Processor time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def jax_seconds() -> float:
    return min(seconds("-c", "import jax") for _ in range(2))


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["-c", "import prm_jax, prm_jax.runs, prm_jax.prime, prm_jax.rollouts"], 0.3),
        (["-m", "prm_jax", "--help"], 0.3),
        (["-c", "from prm_jax import rl, stats"], 2.0),
    ],
    ids=["packages", "help", "functions"],
)
def test_importing_costs_little(words, most, jax_seconds):
    assert any(seconds(*words) < most * jax_seconds for _ in range(2))
