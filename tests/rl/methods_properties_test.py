"""Properties of the values, preferences, labels, objectives and sampling; see `methods.py`."""

import pytest

from prm_jax import rl
from tests.rl.methods import Properties
from tests.rl.methods_table import TABLE

MODULES = (
    "values extraction bellman_rank preference posterior imitation confidence step_labels multi_objective halting "
    "sampling"
).split()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
class TestProperties(Properties):
    pass


def test_the_table_is_complete():
    names = {n for n in rl.__all__ if getattr(rl, n).__module__.rpartition(".")[2] in MODULES}
    functions = {n for n in names if not isinstance(getattr(rl, n), type)}
    assert functions == {row.fn.__name__ for row in TABLE}
