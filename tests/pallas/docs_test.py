"""docs/kernels.md names every public name of the room."""

import pathlib
import re

from prm_jax import pallas

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def test_every_public_name_is_in_the_table():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE.read_text(), re.MULTILINE)
    assert set(pallas.__all__) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
