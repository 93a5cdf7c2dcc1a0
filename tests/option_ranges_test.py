"""Ranges declared beside options: every problem is reported under its command-line name."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import tyro

from prm_jax import command_line
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.option_ranges import above, at_least, at_most, check_ranges, within
from prm_jax.prime import PRESETS


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, above(0)] = 1.0
    share: Annotated[float, within(0, 1, high_open=True)] = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    unnamed: Annotated[Inner, tyro.conf.arg(name="")] = field(default_factory=Inner)
    max_steps: Annotated[int, at_least(0)] = 0
    limit: Annotated[float | None, at_least(1, infinity=True)] = None
    sizes: Annotated[tuple[int, ...], at_least(1)] = ()
    free: float = 0.0
    low: Annotated[float, at_most(3)] = 0.0
    word: str = "x"
    flag: bool = True


def test_values_in_range_have_no_problems():
    assert check_ranges(Outer()) == []
    assert check_ranges(Outer(Inner(1e-9, 0.0), max_steps=10**400, limit=math.inf, sizes=(1, 2), free=-1e30)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Outer(Inner(rate=0.0)), "--inner.rate is 0.0; it must be greater than 0"),
        (Outer(Inner(share=1.0)), "--inner.share is 1.0; it must be within [0, 1)"),
        (Outer(unnamed=Inner(rate=-1.0)), "--rate is -1.0; it must be greater than 0"),
        (Outer(max_steps=-1), "--max-steps is -1; it must be at least 0"),
        (Outer(limit=0.5), "--limit is 0.5; it must be at least 1"),
        (Outer(sizes=(2, 0)), "--sizes is 0; it must be at least 1"),
        (Outer(low=4.0), "--low is 4.0; it must be at most 3"),
        (Outer(Inner(rate=math.inf)), "--inner.rate is inf; it must be greater than 0 and finite"),
        (Outer(limit=math.nan), "--limit is nan; it must be at least 1"),
        (Outer(free=-math.inf), "--free is -inf; it must be a finite number"),
    ],
)
def test_a_problem_names_option_value_and_expectation(options, message):
    assert check_ranges(options) == [message]


def test_all_problems_are_reported_with_the_prefix():
    assert [text.split()[0] for text in check_ranges(Inner(-1.0, 2.0), "prm.")] == ["--prm.rate", "--prm.share"]


def test_the_command_line_reads_options_with_ranges():
    words = ["--inner.rate", "3", "--sizes", "1", "2", "--limit", "inf"]
    options: Any = command_line.parse(Outer, words, prog="x")
    assert options.inner.rate == 3.0 and options.sizes == (1, 2) and options.limit == math.inf


def test_presets_are_in_range():
    for options in PRESETS.values():
        assert check_ranges(options) == []
    assert check_ranges(MeshOptions(data=-2), "mesh.") == ["--mesh.data is -2; it must be at least -1"]
