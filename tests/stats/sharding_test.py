"""Eight devices give what one gives: the statistics of scores."""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from prm_jax import stats
from tests.rl.methods import N
from tests.rl.methods_sharding import DEVICES, Sharding, close
from tests.rl.table import TABLE as CORE
from tests.stats.table import TABLE


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
class TestSharding(Sharding):
    pass


def test_every_function_with_an_axis_name_is_in_a_table():
    functions = [getattr(stats, name) for name in stats.__all__ if inspect.isfunction(getattr(stats, name))]
    named = {f.__name__ for f in functions if "axis_name" in inspect.signature(f).parameters}
    assert named <= {row.fn.__name__ for row in [*TABLE, *CORE]}


@pytest.mark.parametrize("bins", ["width", "mass"])
def test_bins_pool_over_devices(bins):
    rng = np.random.default_rng(0)
    p, y = rng.uniform(size=2 * N).round(1), rng.uniform(size=2 * N)
    whole = stats.reliability_bins(p, y, num_bins=4, bins=bins)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    pooled = jax.shard_map(
        functools.partial(stats.reliability_bins, num_bins=4, bins=bins, axis_name="data"),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=P(),
    )
    close(jax.jit(pooled)(p, y), whole)
