"""Eight devices give what one gives: values, preferences, labels, objectives and sampling."""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from prm_jax import rl
from tests.rl.methods import N
from tests.rl.methods_sharding import DEVICES, Sharding, close
from tests.rl.methods_table import TABLE
from tests.rl.table import TABLE as CORE


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
class TestSharding(Sharding):
    pass


def test_every_function_with_an_axis_name_is_in_a_table():
    functions = [getattr(rl, name) for name in rl.__all__ if inspect.isfunction(getattr(rl, name))]
    named = {f.__name__ for f in functions if "axis_name" in inspect.signature(f).parameters}
    assert named <= {row.fn.__name__ for row in [*TABLE, *CORE]} | {"best_threshold"}


def test_threshold_of_all_devices():
    rng = np.random.default_rng(1)
    scores, mask = rng.uniform(size=(2 * N, 4)), np.arange(4) < rng.integers(1, 5, (2 * N, 1))
    label = rng.integers(-1, 4, 2 * N)
    whole = rl.best_threshold(scores, mask, label)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    pooled = jax.shard_map(
        functools.partial(rl.best_threshold, axis_name="data"), mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P()
    )
    close(jax.jit(pooled)(scores, mask, label), whole)


def test_a_group_on_two_devices_needs_the_axis_name():
    """The released code's statistics per device are another number: what `axis_name` is for."""
    x, ids = np.arange(16.0), np.zeros(16, int)
    whole = rl.leave_one_out(x, ids, num_groups=1)
    apart = jax.vmap(lambda v, i: rl.leave_one_out(v, i, num_groups=1))(x.reshape(8, 2), ids.reshape(8, 2))
    named = jax.vmap(lambda v, i: rl.leave_one_out(v, i, num_groups=1, axis_name="data"), axis_name="data")(
        x.reshape(8, 2), ids.reshape(8, 2)
    )
    np.testing.assert_allclose(named.ravel(), whole, rtol=1e-6)
    assert not np.allclose(apart.ravel(), whole)
