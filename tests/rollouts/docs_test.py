"""The page about rollouts: its code runs and it names every public name."""

import pathlib
import re

import numpy as np

from prm_jax import rollouts

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "rollouts.md"


def test_every_public_name_is_on_the_page():
    assert set(rollouts.__all__) <= set(re.findall(r"\w+", PAGE.read_text()))
    assert all(hasattr(rollouts, name) for name in rollouts.__all__)


def test_the_code_on_the_page_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, names)
    np.testing.assert_array_equal(names["again"].tokens, names["samples"].tokens)
    assert names["samples"].tokens.shape == (8, 12) and len(names["found"].candidates) == 2
