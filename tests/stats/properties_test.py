"""Properties of the statistics of scores; see `tests.rl.methods`."""

import pytest

from prm_jax import stats
from tests.rl.methods import Properties
from tests.rl.table import TABLE as CORE
from tests.stats.table import TABLE

ELSEWHERE = {"pass_at_k", "langevin_samples", "interval"}  # with tests of their own


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
class TestProperties(Properties):
    pass


def test_the_table_is_complete():
    functions = {n for n in stats.__all__ if not isinstance(getattr(stats, n), type)}
    in_core = {row.name for row in CORE} | ELSEWHERE
    assert functions - in_core == {row.fn.__name__ for row in TABLE}
