"""Finds what an option names: a built-in, or an attribute of a module or file of the user's.

One resolver serves every option that accepts a name (task, verifier, splitter, reward source, shaping, advantage,
loss, callback), so that ``package.module:attribute`` and ``path/file.py:attribute`` mean the same everywhere.
"""

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

from prm_jax.errors import UserError

T = TypeVar("T")


def resolve(name: str, builtins: Mapping[str, T], what: str, *, option: str = "") -> T:
    """Returns the built-in of that name, or imports ``module:attribute``.

    Args:
      name: a key of `builtins`; ``"package.module:attribute"``, where the module is installed or found from the
        working directory; or ``"path/file.py:attribute"``, relative to the working directory. The attribute may be
        dotted (``module:Class.method``).
      builtins: built-in names and their meaning.
      what: what is named, for messages: "task", "reward source".
      option: the command-line option that gave the name, without dashes, for messages.

    Returns:
      The built-in or the imported attribute, which is callable.

    Raises:
      UserError: an unknown name (the nearest is suggested), a module that cannot be imported (with the original
        exception), a missing attribute, or an attribute that is not callable.
    """
    if name in builtins:
        return builtins[name]
    subject = f"{what} {name!r}" + (f" (--{option})" if option else "")
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        raise UserError(f"unknown {subject}: {_unknown_name(name, builtins)}")
    if not module_name or not attribute:
        raise UserError(f"cannot resolve the {subject}: expected package.module:attribute or path/file.py:attribute")
    found = _attribute(_import(module_name, subject), attribute, subject)
    if not callable(found):
        raise UserError(
            f"the {subject} is not callable: found {_excerpt(found)} of type {type(found).__name__}; "
            f"name a function or class"
        )
    return found


def check_signature(function: Callable[..., Any], parameters: Sequence[str], what: str) -> None:
    """Refuses a callable that cannot be called with these positional arguments.

    Args:
      function: what a user named or passed.
      parameters: the names of the arguments it will be called with, in order.
      what: what the callable is, for messages: "advantage 'my_pkg:centred'".

    Raises:
      UserError: names the signature found and the one expected.
    """
    if not callable(function):
        raise UserError(f"the {what} is not callable: found {_excerpt(function)} of type {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not say
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise UserError(
            f"the {what} has the wrong signature: it is called as {_name(function)}({', '.join(parameters)}), "
            f"but is defined as {_name(function)}{signature}: {error}"
        ) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests the nearest known name as "did you mean 'x'? "; an empty text when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _unknown_name(name: str, builtins: Mapping[str, Any]) -> str:
    known = ", ".join(sorted(builtins))
    choices = f"built in are {known}; " if known else ""
    module, dot, attribute = name.removesuffix(".py").rpartition(".")
    if name.endswith(".py"):
        hint = f"to name a function of a file write {name}:function"
    elif dot and all(part.isidentifier() for part in (*module.split("."), attribute)):
        hint = f"to name your own write {module}:{attribute}, with a colon before the attribute"
    else:
        hint = "your own are named as package.module:attribute or path/file.py:attribute"
    return f"{nearest(name, builtins)}{choices}{hint}"


def _import(name: str, subject: str) -> ModuleType:
    directory = os.getcwd()
    # Last, so that nothing installed is shadowed, and for good: functions may import more when they are called.
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)
    try:
        if name.endswith(".py") or "/" in name or os.sep in name:
            return _import_file(pathlib.Path(name).expanduser(), subject)
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"cannot import the {subject}: {name!r} is not the name of a module or of a .py file")
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"cannot import the {subject}: there is no module {error.name!r}, neither installed nor in the "
                f"working directory {directory}"
            ) from error
        raise UserError(_import_failure(name, subject, error)) from error
    except (Exception, SystemExit) as error:
        raise UserError(_import_failure(name, subject, error)) from error


def _import_file(path: pathlib.Path, subject: str) -> ModuleType:
    try:
        path = path.resolve()
        if not path.is_file():
            there = "it is not a regular file" if path.exists() else "the file does not exist"
            raise UserError(f"cannot import the {subject}: {there}: {path}")
        digest = hashlib.sha256(os.fsencode(path) + path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UserError(f"cannot import the {subject}: {path}: {error.strerror or error}") from error
    # The same file gives the same module, so that its classes are the same objects wherever it is named.
    name = f"_prm_jax_file_{digest}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"cannot import the {subject}: {path} is not a Python file; its name must end in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_failure(name: str, subject: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        place = f" at {error.filename}:{error.lineno}" if error.lineno else ""
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
        place = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    text = str(error).strip()
    return f"cannot import the {subject}: importing {name} raised {type(error).__name__}{place}{text and ': ' + text}"


def _attribute(module: ModuleType, attribute: str, subject: str) -> Any:
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        where = getattr(module, "__file__", None) or module.__name__
        raise UserError(
            f"cannot find the {subject}: {where} has no {attribute!r}; {nearest(attribute, public)}"
            f"it defines {', '.join(sorted(public)[:12]) or 'nothing'}"
        ) from None


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
