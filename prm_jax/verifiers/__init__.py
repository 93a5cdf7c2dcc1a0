"""Did the answer pass?  A ``Verdict`` tells a wrong answer from a check that failed."""

from prm_jax.verifiers.verdict import Status, Verdict

__all__ = ["Status", "Verdict"]
