"""Why a run may end before its last step, as exceptions that the command line turns into exit codes."""

from prm_jax.errors import UserError


class InterruptedRun(Exception):
    """A signal asked the run to stop; everything is saved, and ``--resume`` goes on from there."""


class DivergedRun(UserError):
    """Too many steps in a row with a non-finite gradient, or without a prompt to learn from."""
