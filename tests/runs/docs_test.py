"""The page about runs mentions every public name."""

import pathlib
import re

import pytest

from prm_jax import runs

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "runs.md"


@pytest.mark.parametrize("name", runs.__all__)
def test_every_public_name_exists_and_is_documented(name):
    assert getattr(runs, name) is not None
    assert re.search(rf"\b{name}\b", PAGE.read_text())
