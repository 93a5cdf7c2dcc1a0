"""Errors that a user can cause, as opposed to errors of the library; every room may use it."""

import importlib
from types import ModuleType

from prm_jax import exit_codes


class UserError(ValueError):
    """Bad input from outside: a file, an option, a checkpoint, a server's answer.

    The message says what was found, what was expected and what to do about it.  The command line prints it
    without a traceback (``--debug`` shows one) and exits with ``exit_code``.
    """

    exit_code = exit_codes.USER


class UnavailableError(UserError):
    """A server or another process does not answer; the same command may work later."""

    exit_code = exit_codes.UNAVAILABLE


class StorageError(UserError):
    """A file cannot be written because the device is full or read-only; nothing written before is lost."""

    exit_code = exit_codes.STORAGE


class MissingExtraError(UserError, ImportError):
    """A feature needs a package that is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional package where it is needed.

    Args:
      module: the module to import, dotted name allowed.
      extra: the extra of this package's distribution that installs it.

    Returns:
      The imported module.

    Raises:
      MissingExtraError: when it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A missing dependency *inside* an installed package is named as what it is.
        raise MissingExtraError(
            f"this needs the package {error.name!r}, which is not installed: "
            f"pip install 'prm-jax[{extra}]'"
        ) from error
