"""Exceptions that end a run before its last step; the command line turns them into exit codes."""

from prm_jax import exit_codes
from prm_jax.errors import UserError


class InterruptedRun(Exception):
    """The run was stopped by a signal; everything is saved, and ``--resume`` continues from there."""


class DivergedRun(UserError):
    """Too many consecutive steps with a non-finite update or without a prompt to learn from, or a non-finite state."""

    exit_code = exit_codes.DIVERGED
