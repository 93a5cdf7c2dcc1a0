"""The page about data names every public name of the room, and every task option of files."""

import dataclasses
import pathlib
import re

from prm_jax import data
from prm_jax.data.splitters import SPLITTERS

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_every_public_name_is_on_the_page():
    named = set(re.findall(r"\w+", PAGE.read_text() + (PAGE.parent / "code.md").read_text()))
    assert set(data.__all__) <= named
    assert set(SPLITTERS) <= named


def test_every_option_of_files_is_on_the_page():
    named = set(re.findall(r"\w+", PAGE.read_text()))
    options = {field.name for field in dataclasses.fields(data.FileOptions)}
    assert {name for name in options if not name.endswith("_options")} <= named
