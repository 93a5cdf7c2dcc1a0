"""Eight devices give what one gives, for every row of a table of `methods.py`: statistics, losses, and plain rows.

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

from prm_jax.rl import Loss
from tests.rl.methods import N, Row, draw

DEVICES = 8
# Ranks, sorted sums, sequences and totals of the whole batch: gather first.
WHOLE = {
    "benjamini_hochberg", "best_of_n_weights", "binned_r_squared", "budget_allocation", "conformal_interval",
    "conformal_pvalues", "debias_transform", "decorrelate", "e_benjamini_hochberg", "fit_isotonic",
    "fit_over_optimization", "isotonic_regression", "midranks", "optimized_selection", "proxy_gold_report", "spearman",
    "venn_abers",
}  # fmt: skip
MEMBERS = {"judge_labels", "penalized_rewards"}  # whose rows in the table are judges or models, not a batch
SUMS = {"answer_confidence"}  # one entry per group, 0 on devices without it


def takes_axis(row: Row) -> bool:
    return "axis_name" in inspect.signature(row.fn).parameters


def batch_axis(x) -> int | None:
    """Where the 16 rows are."""
    return next((i for i, size in enumerate(np.shape(x)) if size == 2 * N), None)


def rows_of(row: Row):
    """(16 rows, keyword arguments): two rows per device, and each group on one device."""
    parts = [draw(row, seed) for seed in (3, 4)]
    data = {name: np.concatenate([p[name] for p in parts], p.shape.index(N)) for name, p in parts[0].items()}
    kw = dict(row.kw)
    if "group_ids" in data:
        data["group_ids"], kw["num_groups"] = np.repeat(np.arange(DEVICES), 2), DEVICES
    return data, kw


@functools.cache
def on_one_device(row: Row):
    """(16 rows, keyword arguments, results) of a row; compiled once for all tests."""
    data, kw = rows_of(row)
    return data, kw, jax.tree.map(np.asarray, jax.jit(lambda d: row.fn(**d, **kw))(data))


def local(row: Row, kw, data):
    """The function on one device's rows."""
    axis = {"axis_name": "data"} if takes_axis(row) else {}
    result = row.fn(**data, **kw, **axis)
    add_up = isinstance(result, Loss) or row.fn.__name__ in SUMS
    return jax.lax.psum(result, "data") if add_up else result


def spec(x) -> P:
    axis = batch_axis(x)
    return P() if axis is None else P(*(None,) * axis, "data")


def close(got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=2e-4, atol=2e-5)


class Sharding:
    """The tests; a subclass is parametrized over the rows of a table as `row`."""

    def test_sharded_equals_whole(self, row):
        if row.fn.__name__ in WHOLE | MEMBERS:
            pytest.skip("needs all of its data on one device")
        data, kw, expected = on_one_device(row)
        mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
        sharded = jax.shard_map(
            functools.partial(local, row, kw),
            mesh=mesh,
            in_specs=(jax.tree.map(spec, data),),
            out_specs=jax.tree.map(spec, expected),
        )
        close(jax.jit(sharded)(data), expected)

    def test_pmap_equals_whole(self, row):
        if not takes_axis(row):
            pytest.skip("takes no axis name")
        data, kw, expected = on_one_device(row)

        def split(x):
            axis = batch_axis(x)
            return np.stack(np.split(x, DEVICES, axis))

        got = jax.pmap(functools.partial(local, row, kw), axis_name="data")(jax.tree.map(split, data))
        joined = jax.tree.map(
            lambda x, y: x[3] if batch_axis(y) is None else np.concatenate(list(x), batch_axis(y)), got, expected
        )
        close(joined, expected)
