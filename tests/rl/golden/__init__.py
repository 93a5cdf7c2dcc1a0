"""Numbers computed from the papers' formulas by other code, in float64: inputs and outputs side by side."""

import functools
import json
import pathlib
from typing import Any


@functools.cache
def load(name: str) -> dict[str, Any]:
    """One file of vectors by name."""
    return json.loads((pathlib.Path(__file__).parent / f"{name}.json").read_text())
