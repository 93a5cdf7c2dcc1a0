"""Names of a package that are imported on first use (PEP 562), so that importing the package costs nothing."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def lazy_attribute(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Imports a public name from its module and keeps it in the package; for a package's ``__getattr__``.

    Args:
      package: the package's ``__name__``.
      homes: public name -> module of the package, or the full name of a module elsewhere.
      name: what is asked for.

    Raises:
      AttributeError: the package has no such name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    home = homes[name]
    module = importlib.import_module(home if home.startswith("prm_jax.") else f"{package}.{home}")
    value = getattr(module, name)
    setattr(sys.modules[package], name, value)
    return value
