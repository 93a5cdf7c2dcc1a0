"""What holds for every public function, tested from one table; see `table.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from prm_jax import rl
from tests.rl import properties
from tests.rl.properties import SIZES, Row, call, draw, poison, result_leaves
from tests.rl.table import ELSEWHERE, TABLE

ROWS = pytest.mark.parametrize("row", TABLE, ids=str)
# How a function maps and shards does not depend on its options: one row per function suffices.
ONE_ROW_EACH = pytest.mark.parametrize("row", {row.name: row for row in reversed(TABLE)}.values(), ids=str)
MODULES = set(
    "rewards shaping returns advantages credit prefixes losses pair_losses reward_losses targets filtering "
    "metrics".split()
)
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def fixed_weights(shape):
    """The coefficients by which a result is made a scalar."""
    return np.random.default_rng(3).normal(size=shape)


@functools.cache
def compiled(row: Row):
    """(result, gradients of the floats) as one compiled function, and a list with an entry for each trace."""
    traces = []

    def scalar(floats, rest):
        result = call(row, {**floats, **rest})
        return jnp.asarray(properties.objective(row, result, fixed_weights), jnp.float32), result

    def traced(data):
        traces.append(1)
        floats = {k: v for k, v in data.items() if jnp.issubdtype(v.dtype, jnp.floating)}
        rest = {k: v for k, v in data.items() if k not in floats}
        (_, result), gradients = jax.value_and_grad(scalar, has_aux=True)(floats, rest)
        return result, gradients

    return jax.jit(traced), traces


def run(row, data):
    return compiled(row)[0](data)[0]


def assert_close(row, got, expected, **tolerance):
    pairs = zip(result_leaves(row, got), result_leaves(row, expected), strict=True)
    for (_, x), (_, y) in pairs:
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **{**TOLERANCE, **tolerance})


def assert_finite(result):
    assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(result))


def test_every_public_function_has_a_row():
    mine = {name for name in rl.__all__ if getattr(rl, name).__module__.rpartition(".")[2] in MODULES}
    rows = {row.name for row in TABLE if row.fn.__module__.startswith("prm_jax.rl")}
    assert mine == rows | ELSEWHERE


@ROWS
def test_equals_the_loop_oracle(row):
    for seed in (0, 1):
        data = draw(row, seed)
        got, expected = properties.comparable(run(row, data)), properties.call_oracle(row, data)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=2e-5, atol=2e-5)


@ROWS
def test_jit_gives_the_same_result_and_traces_once(row):
    data = draw(row, 0)
    assert_close(row, run(row, data), call(row, data))
    run(row, draw(row, 1))
    assert len(compiled(row)[1]) == 1


@ONE_ROW_EACH
def test_vmap_equals_a_loop(row):
    batch = [draw(row, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batch)
    got = jax.jit(jax.vmap(functools.partial(call, row)))(stacked)
    for i, data in enumerate(batch):
        assert_close(row, jax.tree.map(lambda x, i=i: x[i], got), run(row, data))


@ROWS
def test_masked_values_are_ignored(row):
    data = draw(row, 0)
    dirty = poison(row, data)
    got = run(row, dirty)
    assert_finite(got)
    assert_close(row, got, run(row, data), rtol=0, atol=0)


@ROWS
def test_padding_changes_nothing(row):
    """Rows and columns of padding, NaN in them: as if the oracle had seen the smaller arrays."""
    if not any(kind in properties.MASKS for kind in row.kinds.values()):
        pytest.skip("no mask")
    # There are always `num_steps` slots.
    steps = SIZES["S"] if "steps" in row.kinds.values() else SIZES["S"] - 1
    sizes = {"B": SIZES["B"] - 3, "T": SIZES["T"] - 2, "S": steps}
    masks = properties.random_masks(np.random.default_rng(0))
    cut = {kind: tuple(slice(sizes.get(axis)) for axis in axes) for kind, axes in properties.MASKS.items()}
    padding = {kind: -1 if kind in ("ids", "steps") else False for kind in masks}
    padded = {kind: np.full_like(mask, padding[kind]) for kind, mask in masks.items()}
    for kind, mask in masks.items():
        padded[kind][cut[kind]] = mask[cut[kind]]
    data = draw(row, 0, padded)
    small = {
        name: x[tuple(slice(sizes.get(axis)) for axis in properties.axes_of(row.kinds[name]))]
        for name, x in data.items()
    }
    got = result_leaves(row, properties.comparable(run(row, poison(row, data))))
    for (axes, x), y in zip(got, jax.tree.leaves(properties.call_oracle(row, small)), strict=True):
        x = np.asarray(x, np.float64)
        assert np.isfinite(x).all()
        x = x[tuple(slice(sizes.get(axis)) for axis in axes)]
        np.testing.assert_allclose(x, np.asarray(y, np.float64), rtol=2e-5, atol=2e-5)


def permuted(row, data, order):
    return {
        name: np.take(x, order, properties.axes_of(row.kinds[name]).index("B"))
        if "B" in properties.axes_of(row.kinds[name])
        else x
        for name, x in data.items()
    }


def assert_permutes(row, data, order):
    got, expected = run(row, permuted(row, data, order)), run(row, data)
    for (axes, x), (_, y) in zip(result_leaves(row, got), result_leaves(row, expected), strict=True):
        y = np.take(y, order, axes.index("B")) if "B" in axes else y
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **TOLERANCE)


@ROWS
def test_row_order_and_group_ids_do_not_matter(row):
    data, rng = draw(row, 0), np.random.default_rng(7)
    assert_permutes(row, data, rng.permutation(SIZES["B"]))
    ids = next((name for name, kind in row.kinds.items() if kind == "ids"), None)
    if ids is None or "groups" in row.kinds.values():
        return
    renamed = rng.permutation(SIZES["G"])
    got = run(row, {**data, ids: np.where(data[ids] >= 0, renamed[data[ids]], -1)})
    for (axes, x), (_, y) in zip(result_leaves(row, got), result_leaves(row, run(row, data)), strict=True):
        x = np.asarray(x)[renamed] if axes == "G" else x
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **TOLERANCE)


@ROWS
def test_results_are_float32_for_any_dtype(row):
    data = draw(row, 0)
    for dtype in (jnp.bfloat16, jnp.float16):
        low = {k: jnp.asarray(v, dtype) if v.dtype.kind == "f" else v for k, v in data.items()}
        same = {k: np.asarray(v, np.float32) if v.dtype == dtype else v for k, v in low.items()}
        got = call(row, low)
        assert_close(row, got, run(row, same))
        dtypes = {jnp.result_type(x) for x in jax.tree.leaves(got)}
        assert dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32), jnp.dtype(bool)}


@ROWS
def test_integer_outcomes_and_masks_are_accepted(row):
    outcomes = [name for name, kind in row.kinds.items() if kind == "a"]
    masks = [name for name, kind in row.kinds.items() if kind in ("mask", "smask", "rows", "flag", "flags")]
    data = draw(row, 0)
    whole = {**data, **{name: np.rint(data[name]).astype(np.float32) for name in outcomes}}
    ints = {k: v.astype(np.int32) if k in outcomes + masks else v for k, v in whole.items()}
    if outcomes + masks:
        assert_close(row, call(row, ints), run(row, whole))


@ROWS
def test_gradients(row):
    """Those that the row names equal the oracle's slopes, the others are zero, and masked entries have none."""
    data = draw(row, 0)
    valid = properties.valid_of(row, data)
    for name, g in compiled(row)[0](poison(row, data))[1].items():
        g = np.asarray(g, np.float64)
        assert np.isfinite(g).all(), name
        axes = properties.axes_of(row.kinds[name])
        behind = next((~valid[key] for key in ("BT", "BS", "B") if axes.startswith(key) and key in valid), None)
        assert behind is None or not g[behind].any(), f"a gradient at masked entries: {name}"
        if name in row.grad.split():
            assert_slope(row, data, name, g)
        else:
            assert not g.any(), f"{name} should receive no gradient"


def assert_slope(row, data, name, gradient):
    """Compares with central differences of the oracle, accurate to nine digits in float64."""
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in data.items()}

    def moved(step):
        return properties.objective(row, row.oracle(**{**wide, name: wide[name] + step}, **row.kw), fixed_weights)

    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=gradient.shape)
        slope = (moved(1e-6 * direction) - moved(-1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3, atol=1e-4)


@ROWS
def test_empty_masks(row):
    masks = properties.random_masks(np.random.default_rng(0))
    empty = {"steps": np.full_like(masks["steps"], -1), "ids": np.full_like(masks["ids"], -1)}
    none = {**{k: np.zeros_like(v) for k, v in masks.items()}, **empty}
    got = run(row, poison(row, draw(row, 0, none)))
    assert_finite(got)
    if row.empty is not None:
        for leaf in jax.tree.leaves(properties.comparable(got)):
            np.testing.assert_array_equal(np.asarray(leaf, np.float64), row.empty)


def _mesh():
    return jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))


def _whole_groups(row, data):
    """The arguments with two adjacent rows per group, so that each of eight devices has whole groups."""
    ids = [name for name, kind in row.kinds.items() if kind == "ids"]
    return {**data, **{name: np.repeat(np.arange(8), 2) for name in ids}} if row.whole_groups else data


def _local(row, data):
    """The function on one device's part of the batch."""
    result = call(row, data, **({"axis_name": "batch"} if "axis" in row.shard else {}))
    return jax.lax.psum(result, "batch") if "psum" in row.shard else result


def _spec(axes):
    return P(*("batch" if axis == "B" else None for axis in axes))


@ONE_ROW_EACH
def test_eight_devices_equal_one(row):
    if row.shard == "none":
        pytest.skip("a statistic of sorted values; gather first")
    data = _whole_groups(row, draw(row, 0))
    expected = run(row, data)
    out = [_spec(axes) for axes, _ in result_leaves(row, expected)]
    sharded = jax.shard_map(
        functools.partial(_local, row),
        mesh=_mesh(),
        in_specs=({name: _spec(properties.axes_of(kind)) for name, kind in row.kinds.items()},),
        out_specs=jax.tree.unflatten(jax.tree.structure(expected), out),
    )
    assert_close(row, jax.jit(sharded)(data), expected)


@ONE_ROW_EACH
def test_pmap_with_an_axis_name_equals_one_device(row):
    if "axis" not in row.shard:
        pytest.skip("takes no axis name")
    data = _whole_groups(row, draw(row, 0))
    expected = run(row, data)
    split = {name: x.reshape(8, -1, *x.shape[1:]) for name, x in data.items()}
    got = jax.pmap(functools.partial(_local, row), axis_name="batch")(split)
    for (axes, x), (_, y) in zip(result_leaves(row, got), result_leaves(row, expected), strict=True):
        x = np.asarray(x).reshape(np.shape(y)) if "B" in axes else np.asarray(x)[0]
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **TOLERANCE)


@st.composite
def layouts(draw_):
    """Masks with holes anywhere, and any layout of rows in groups."""
    bits = st.integers(0, 2 ** (SIZES["B"] * SIZES["T"]) - 1)

    def mask(*shape):
        number = draw_(bits)
        return np.array([number >> i & 1 for i in range(int(np.prod(shape)))], bool).reshape(shape)

    b, t, s = SIZES["B"], SIZES["T"], SIZES["S"]
    masks = {"mask": mask(b, t), "smask": mask(b, s), "rows": mask(b)}
    ids = draw_(st.lists(st.integers(-1, SIZES["G"] - 1), min_size=b, max_size=b))
    steps = np.sort(np.random.default_rng(draw_(st.integers(0, 99))).integers(0, s, (b, t)), 1)
    return {**masks, "ids": np.array(ids), "steps": np.where(masks["mask"], steps, -1)}


def compacted(row, data):
    """Each row's valid entries moved to the front, in order."""
    orders = {}
    for name, kind in row.kinds.items():
        if kind in ("mask", "smask"):
            orders[properties.axes_of(kind)] = np.argsort(~data[name], 1, kind="stable")
    out = {}
    for name, x in data.items():
        order = orders.get(properties.axes_of(row.kinds[name])[:2])
        index = None if order is None else order.reshape(order.shape + (1,) * (x.ndim - 2))
        out[name] = x if index is None else np.take_along_axis(x, index, 1)
    return out, orders


@ROWS
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(layouts(), st.integers(0, 9), st.permutations(range(SIZES["B"])))
def test_any_mask_and_any_layout_of_groups(row, masks, seed, order):
    if "parent" in row.kinds.values():  # a tree's nodes have no holes
        masks = {**masks, "smask": np.sort(~masks["smask"], 1) == 0}
    data = draw(row, seed, masks)
    clean = run(row, data)
    dirty = poison(row, data)
    assert_close(row, run(row, dirty), clean, rtol=0, atol=0)
    assert_permutes(row, dirty, np.array(order))
    if not row.compacts:
        return
    moved, orders = compacted(row, dirty)
    for (axes, x), (_, y) in zip(result_leaves(row, run(row, moved)), result_leaves(row, clean), strict=True):
        y = np.take_along_axis(np.asarray(y), orders[axes], 1) if axes in orders else y
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **TOLERANCE)
