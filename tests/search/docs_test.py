"""The page about search: its code runs, it names every public name and nothing that does not exist."""

import collections
import pathlib
import re

import numpy as np

from prm_jax import search
from prm_jax.search import worlds

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_every_public_name_is_on_the_page():
    text = PAGE.read_text()
    named = set(re.findall(r"\b\w+\b", text))
    minor = {"FirstError", "Halvings", "StepBeam", "StepPairs"}
    assert set(search.__all__) - minor <= named and set(worlds.__all__) <= named
    for name in re.findall(r"\bsearch\.(\w+)\(", text):
        assert hasattr(search, name), name
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (PAGE.parent / link).exists(), link


def test_the_code_on_the_page_runs():
    step = collections.namedtuple("Step", "text prior value is_answer")

    def sample_steps(text, count):
        return [step(f"{i};", 1 / count, 0.1 * i, len(text) > 12) for i in range(count)]

    names = {"sample_steps": sample_steps}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, names)
        if "decode" in names and "decoded" not in names:
            names["decoded"] = names["texts"]  # another block has texts of its own
    assert names["labels"].shape == names["mask"].shape == (2, 61)
    assert int(names["tree"].count.min()) > 10 and len(names["texts"]) > 20
    assert all((b, 0) in names["texts"] for b in (0, 1))
    prompts, decoded = np.asarray(names["prompts"]), np.asarray(names["decoded"])
    assert (decoded[:, :3] == prompts[:, :3]).all() and (decoded != prompts).any(axis=1).all()
