"""Eight devices give what one gives, for every row of the methods' table: statistics, losses, and plain rows.

Statistics take the name of the mapped axis and are those of the whole batch; losses are sums that add up over devices;
what works row by row needs nothing. Functions of data that must be ordered or compared as a whole are named below.
"""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from prm_jax import rl
from tests.rl.methods_properties_test import TABLE, N, Row, draw
from tests.rl.table import TABLE as CORE

DEVICES = 8
# Ranks, sorted sums, sequences and totals of the whole batch: gather first.
WHOLE = {
    "benjamini_hochberg", "best_of_n_weights", "binned_r_squared", "budget_allocation", "conformal_interval",
    "conformal_pvalues", "debias_transform", "decorrelate", "e_benjamini_hochberg", "fit_isotonic",
    "fit_over_optimization", "isotonic_regression", "midranks", "optimized_selection", "proxy_gold_report", "spearman",
    "venn_abers",
}  # fmt: skip
MEMBERS = {"judge_labels", "penalized_rewards"}  # whose rows in the table are judges or models, not a batch
SUMS = {"answer_confidence"}  # an entry a group, 0 on devices that do not hold it


def takes_axis(row: Row) -> bool:
    return "axis_name" in inspect.signature(row.fn).parameters


SHARDED = pytest.mark.parametrize(
    "row", [r for r in TABLE if r.fn.__name__ not in WHOLE | MEMBERS], ids=lambda r: r.name
)
NAMED = pytest.mark.parametrize("row", [r for r in TABLE if takes_axis(r)], ids=lambda r: r.name)


def batch_axis(x) -> int | None:
    """Where the 16 rows are."""
    return next((i for i, size in enumerate(np.shape(x)) if size == 2 * N), None)


def rows_of(row: Row):
    """(16 rows, keyword arguments): two rows a device, and each group on one device."""
    parts = [draw(row, seed) for seed in (3, 4)]
    data = {name: np.concatenate([p[name] for p in parts], p.shape.index(N)) for name, p in parts[0].items()}
    kw = dict(row.kw)
    if "group_ids" in data:
        data["group_ids"], kw["num_groups"] = np.repeat(np.arange(DEVICES), 2), DEVICES
    return data, kw


@functools.cache
def on_one_device(name: str):
    """(16 rows, keyword arguments, results) of the row of that name; compiled once for all tests."""
    (row,) = (row for row in TABLE if row.name == name)
    data, kw = rows_of(row)
    return data, kw, jax.tree.map(np.asarray, jax.jit(lambda d: row.fn(**d, **kw))(data))


def local(row: Row, kw, data):
    """The function on one device's rows."""
    axis = {"axis_name": "data"} if takes_axis(row) else {}
    result = row.fn(**data, **kw, **axis)
    add_up = isinstance(result, rl.Loss) or row.fn.__name__ in SUMS
    return jax.lax.psum(result, "data") if add_up else result


def spec(x) -> P:
    axis = batch_axis(x)
    return P() if axis is None else P(*(None,) * axis, "data")


def close(got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=2e-4, atol=2e-5)


def test_every_function_with_an_axis_name_is_in_a_table():
    functions = [getattr(rl, name) for name in rl.__all__ if inspect.isfunction(getattr(rl, name))]
    named = {f.__name__ for f in functions if "axis_name" in inspect.signature(f).parameters}
    assert named <= {row.fn.__name__ for row in [*TABLE, *CORE]} | {"best_threshold"}


@SHARDED
def test_sharded_equals_whole(row):
    data, kw, expected = on_one_device(row.name)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        functools.partial(local, row, kw),
        mesh=mesh,
        in_specs=(jax.tree.map(spec, data),),
        out_specs=jax.tree.map(spec, expected),
    )
    close(jax.jit(sharded)(data), expected)


@NAMED
def test_pmap_equals_whole(row):
    data, kw, expected = on_one_device(row.name)

    def split(x):
        axis = batch_axis(x)
        return np.stack(np.split(x, DEVICES, axis))

    got = jax.pmap(functools.partial(local, row, kw), axis_name="data")(jax.tree.map(split, data))
    joined = jax.tree.map(
        lambda x, y: x[3] if batch_axis(y) is None else np.concatenate(list(x), batch_axis(y)), got, expected
    )
    close(joined, expected)


@pytest.mark.parametrize("bins", ["width", "mass"])
def test_bins_pool_over_devices(bins):
    rng = np.random.default_rng(0)
    p, y = rng.uniform(size=2 * N).round(1), rng.uniform(size=2 * N)
    whole = rl.reliability_bins(p, y, num_bins=4, bins=bins)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    pooled = jax.shard_map(
        functools.partial(rl.reliability_bins, num_bins=4, bins=bins, axis_name="data"),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=P(),
    )
    close(jax.jit(pooled)(p, y), whole)


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
