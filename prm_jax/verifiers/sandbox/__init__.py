"""Running programs that a model wrote: isolated, limited, and judged by tests that they cannot see."""

from prm_jax.verifiers.sandbox.canary import check_canaries
from prm_jax.verifiers.sandbox.levels import LEVELS, available_levels, choose_level
from prm_jax.verifiers.sandbox.limits import Limits
from prm_jax.verifiers.sandbox.local import LocalSandbox
from prm_jax.verifiers.sandbox.outcome import Run, TestResult
from prm_jax.verifiers.sandbox.remote import RemoteSandbox
from prm_jax.verifiers.sandbox.tests_of_code import CallTests, IOTests, same_output

__all__ = [
    "LEVELS",
    "CallTests",
    "IOTests",
    "Limits",
    "LocalSandbox",
    "RemoteSandbox",
    "Run",
    "TestResult",
    "available_levels",
    "check_canaries",
    "choose_level",
    "same_output",
]
