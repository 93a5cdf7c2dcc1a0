"""Numbers computed from the papers' formulas by other code, in float64: inputs and outputs side by side."""

import functools
import json
import pathlib
from typing import Any


@functools.cache
def load() -> dict[str, Any]:
    """All blocks by name."""
    return json.loads((pathlib.Path(__file__).parent / "search.json").read_text())
