"""Every public name of prm_jax.prime is on the page about training."""

import pathlib

from prm_jax import prime

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_every_public_name_is_documented():
    text = PAGE.read_text()
    assert [name for name in prime.__all__ if f"`{name}`" not in text and f"prime.{name}" not in text] == []
