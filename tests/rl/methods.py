"""Properties that every function of values, preferences, labels, sampling and statistics must have.

One row per function. Of each: under vmap it gives what a plain call gives; masked NaN changes neither results nor
gradients; an empty mask gives finite results; low precision gives float32 results; gradients are finite, and exactly
zero for arguments that receive none; and results do not depend on the order of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm_jax.rl import Loss

N, K = 8, 3  # rows (or last axis), second axis
ORDER = np.random.default_rng(2).permutation(N)
STEP = 2e-3
INFINITE = {"conformal_interval"}  # infinite without calibration data
FITS = {"fit_isotonic"}  # one result for all rows
EXECUTORS = [HealthCheck.differing_executors]  # the tests are inherited


def normal(*shape):
    return lambda rng: rng.normal(size=shape).astype(np.float32)


def unit(*shape):
    return lambda rng: rng.uniform(0.05, 0.95, size=shape).astype(np.float32)


def integers(high, *shape):
    return lambda rng: rng.integers(0, high, size=shape).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A function, its arrays, and what is expected of them.

    Attributes:
      fn: the public function.
      arrays: samplers of its array arguments by name.
      mask: name of the mask argument (shape: leading axes of what it hides), or None.
      hides: array arguments that may be NaN where the mask is False.
      grad: array arguments that receive gradients.
      kw: static keyword arguments.
      numeric: False where a constant inside the function moves with its arguments, so that differences are no check.
      order: "rows" if permuting the rows of all arrays permutes (or keeps) the result, None if rows are ordered.
    """

    fn: Callable[..., Any]
    arrays: Mapping[str, Callable]
    mask: str | None = None
    hides: str = ""
    grad: str = ""
    kw: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    order: str | None = "rows"
    label: str = ""
    numeric: bool = True

    @property
    def name(self) -> str:
        return self.fn.__name__ + (f"-{self.label}" if self.label else "")


def rows(**arrays):
    return arrays


GROUPED = {"group_ids": integers(3, N)}


def draw(row: Row, seed: int, bits: int | None = None):
    """Random arguments; `bits` spells the mask, any mask at all."""
    rng = np.random.default_rng(seed)
    data = {name: sample(rng) for name, sample in row.arrays.items()}
    if row.mask and bits is not None:
        name, _, shape = row.mask.partition(":")
        size = (N, *{"": (), "NK": (K,), "N4": (4,), "prefix": (K,), "N4K": (4, K)}[shape])
        mask = np.array([bits >> i & 1 for i in range(int(np.prod(size)))], bool).reshape(size)
        data[name] = np.sort(~mask, -1) == 0 if shape == "prefix" else mask
    elif row.mask:
        name, _, shape = row.mask.partition(":")
        columns = {"": (), "NK": (K,), "N4": (4,), "prefix": (K,), "N4K": (4, K)}[shape]
        mask = rng.uniform(size=(N, *columns)) < 0.7
        mask[0] = True
        if shape == "prefix":
            mask = np.arange(K) < rng.integers(1, K + 1, size=(N, 1))
        data[name] = mask
    return data


def spoil(row: Row, data):
    """The same data with NaN where the mask is False."""
    mask = data[row.mask.partition(":")[0]]
    dirty = dict(data)
    for name in row.hides.split():
        x = data[name]
        hidden = np.broadcast_to(~mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
        dirty[name] = np.where(hidden, np.nan, x)
    return dirty


def variants(row: Row, seed: int = 3, bits: int | None = None):
    """[clean, with NaN, empty, permuted, moved up, moved down], stacked; without a mask the first three are clean."""
    clean = draw(row, seed, bits)
    parts = [clean] * 3
    if row.mask is not None:
        name = row.mask.partition(":")[0]
        parts = [clean, spoil(row, clean), {**spoil(row, clean), name: np.zeros_like(clean[name])}]
    parts.append({name: x[ORDER] if row.order else x for name, x in clean.items()})
    move = direction(row)
    for sign in (1, -1):  # integers stay what they are
        parts.append({name: x + sign * STEP * move[name] if name in move else x for name, x in clean.items()})
    return {name: jnp.stack([jnp.asarray(p[name]) for p in parts]) for name in clean}


def direction(row: Row):
    """Along which the arguments that receive gradients are moved."""
    rng = np.random.default_rng(5)
    return {name: rng.normal(size=draw(row, 3)[name].shape).astype(np.float32) for name in row.grad.split()}


def scalar(tree):
    """A number from what gradients flow to: a loss's total, or float arrays (scalars next to arrays are statistics)."""
    if isinstance(tree, Loss):
        return tree.total
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    leaves = [x for x in leaves if x.ndim] or leaves
    return sum((jnp.arange(1, x.size + 1) * x.ravel()).sum() for x in leaves) if leaves else jnp.zeros(())


@functools.cache
def program(row: Row):
    """Everything in one compilation, which takes most of the time.

    Values, their gradients and scalars of the variants under vmap, and values of a plain call on the clean one; and a
    list with an entry for each trace.
    """
    traces = []

    def call(floats, rest):
        return row.fn(**floats, **rest, **row.kw)

    def everything(data):
        floats, rest = split(data)

        def objective(x):
            y = call(x, rest)
            return scalar(y), y

        (number, values), gradients = jax.value_and_grad(objective, has_aux=True)(floats)
        return values, gradients, number

    def both(data):
        traces.append(1)
        return jax.vmap(everything)(data), call(*split({k: v[0] for k, v in data.items()}))

    return jax.jit(both), traces


@functools.cache
def results(row: Row):
    """Results of a row's program on its variants, checked to be traced once."""
    run, traces = program(row)
    data = variants(row)
    (values, gradients, numbers), plain = jax.tree.map(np.asarray, run(data))
    run(data)
    assert len(traces) == 1, "traced twice for one shape"
    return values, gradients, numbers, plain


def split(data):
    """(floats, the rest)."""
    floats = {k: v for k, v in data.items() if v.dtype == jnp.float32}
    return floats, {k: v for k, v in data.items() if k not in floats}


class Properties:
    """The tests; a subclass is parametrized over the rows of a table as `row`."""

    def test_vmap_equals_a_plain_call(self, row):
        values, _, _, plain = results(row)
        for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(values), strict=True):
            np.testing.assert_allclose(x, y[0], rtol=2e-4, atol=2e-5)

    def test_an_uncompiled_call_on_numpy_arrays_gives_the_same(self, row):
        _, _, _, plain = results(row)
        got = row.fn(**draw(row, 3), **row.kw)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)

    def test_masked_nan_empty_masks_and_gradients(self, row):
        values, gradients, _, _ = results(row)
        for x in jax.tree.leaves(values):
            np.testing.assert_array_equal(x[0], x[1])  # masked NaN
            if row.fn.__name__ not in INFINITE:
                assert np.isfinite(x).all()
        receives = row.grad.split()
        for name, gradient in gradients.items():
            assert np.isfinite(gradient).all(), name
            np.testing.assert_array_equal(gradient[0], gradient[1])
            assert name in receives or not gradient.any(), f"{name} receives a gradient"
        for name in receives:
            assert gradients[name][0].any(), f"{name} receives none"

    def test_gradients_are_those_of_differences(self, row):
        if not row.grad or not row.numeric:
            pytest.skip("no gradient, or one that differences do not show")
        _, gradients, numbers, _ = results(row)
        slope = sum((gradients[name][0].astype(np.float64) * move).sum() for name, move in direction(row).items())
        difference = (float(numbers[4]) - float(numbers[5])) / (2 * STEP)
        scale = sum(np.abs(gradients[name][0] * move).sum() for name, move in direction(row).items())
        np.testing.assert_allclose(slope, difference, atol=0.01 * scale + 1e-2)

    @settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=EXECUTORS)
    @given(st.integers(0, 2 ** (N * 4 * K) - 1), st.integers(0, 99))
    def test_any_mask_and_any_layout_of_groups(self, row, bits, seed):
        """Masked NaN anywhere, groups of any sizes (empty ones included), any order: no difference, all finite."""
        if not row.mask:
            pytest.skip("no mask")
        (values, gradients, _), _ = program(row)[0](variants(row, seed, bits))
        for x in map(np.asarray, jax.tree.leaves(values)):
            np.testing.assert_array_equal(x[0], x[1])
            if row.fn.__name__ not in INFINITE:
                assert np.isfinite(x).all()
            if row.order:
                follows = x.ndim > 1 and x.shape[1] == N and row.fn.__name__ not in FITS
                np.testing.assert_allclose(x[0][ORDER] if follows else x[0], x[3], rtol=1e-3, atol=1e-4)
        for gradient in map(np.asarray, jax.tree.leaves(gradients)):
            assert np.isfinite(gradient).all()
            np.testing.assert_array_equal(gradient[0], gradient[1])

    def test_low_precision_and_integers_give_float32(self, row):
        for dtype in (jnp.bfloat16, jnp.float16, jnp.int32):
            shapes = {
                name: jax.ShapeDtypeStruct(x.shape, dtype if x.dtype == np.float32 else x.dtype)
                for name, x in draw(row, 0).items()
            }
            for leaf in jax.tree.leaves(jax.eval_shape(lambda x, row=row: row.fn(**x, **row.kw), shapes)):
                assert leaf.dtype in (np.float32, np.bool_, np.int32)

    def test_the_order_of_the_batch_does_not_matter(self, row):
        if row.order is None:
            pytest.skip("rows are a sequence")
        values, _, _, _ = results(row)
        for x in jax.tree.leaves(values):
            follows = x.ndim > 1 and x.shape[1] == N and row.fn.__name__ not in FITS
            np.testing.assert_allclose(x[0][ORDER] if follows else x[0], x[3], rtol=2e-4, atol=2e-5)
