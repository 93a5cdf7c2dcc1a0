"""Properties that every function of the value, preference, calibration and sampling families must have.

One row a function. Of each: under vmap it gives what a plain call gives; NaN behind a mask changes neither
results nor gradients; an empty mask gives finite results; low precision gives float32 results; gradients are
finite, and exactly zero for arguments that receive none; and results do not depend on the order of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax import rl

N, K = 8, 3  # rows (or last axis), second axis
ORDER = np.random.default_rng(2).permutation(N)
STEP = 2e-3


def normal(*shape):
    return lambda rng: rng.normal(size=shape).astype(np.float32)


def unit(*shape):
    return lambda rng: rng.uniform(0.05, 0.95, size=shape).astype(np.float32)


def integers(high, *shape):
    return lambda rng: rng.integers(0, high, size=shape).astype(np.int32)


@dataclasses.dataclass(frozen=True)
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
FOUR = {name: normal(N) for name in ("logp", "prior_logp", "proposal_logp", "rewards")}
TABLE = [
    # values
    Row(rl.dueling_q, rows(logits=normal(N, K), value=normal(N)), grad="logits value", kw={"alpha": 0.5}),
    Row(
        rl.q_target,
        rows(rewards=normal(N), discounts=unit(N), next_q=normal(N, K), next_actions=integers(K, N)),
    ),
    *(
        Row(
            rl.bellman_targets,
            rows(rewards=normal(N), discounts=unit(N), next_q=normal(N, K), policy_logits=normal(N, K)),
            kw={"kind": kind},
            label=kind,
        )
        for kind in ("expected", "greedy", "conservative")
    ),
    Row(
        rl.recovered_rewards,
        rows(q_taken=normal(N), discounts=unit(N), next_value=normal(N)),
        grad="q_taken next_value discounts",
    ),
    Row(
        rl.dueling_loss,
        rows(logits=normal(N, K), value=normal(N), actions=integers(K, N), targets=normal(N)),
        "mask",
        "logits value targets",
        "logits value",
        {"alpha": 0.7, "advantage_coef": 0.1, "ce_coef": 0.1},
    ),
    Row(rl.double_q_target, rows(rewards=normal(N), discounts=unit(N), next_q=normal(N, K), next_q_other=normal(N, K))),
    *(
        Row(rl.twin, rows(first=normal(N), second=normal(N)), grad="first second", kw={"how": how}, label=how)
        for how in ("min", "mean")
    ),
    Row(rl.candidate_advantages, rows(q_values=normal(N, K), value=normal(N)), "valid:NK", "q_values"),
    Row(
        rl.best_of_n_policy_loss,
        rows(logp=normal(N, K), advantages=normal(N, K)),
        "valid:NK",
        "logp advantages",
        "logp",
        {"threshold": 0.1},
    ),
    Row(
        rl.bellman_rank_penalty,
        rows(features=normal(N, K), next_features=normal(N, K), rewards=normal(N)),
        "mask",
        "features next_features rewards",
        "features",
        {"discount": 0.9, "head": np.array([0.1, -0.2, 0.1], np.float32)},
        numeric=False,
    ),
    Row(
        rl.pinball_loss,
        rows(quantiles=normal(N, K), targets=normal(N)),
        "mask",
        "quantiles targets",
        "quantiles",
        {"levels": np.array([0.1, 0.5, 0.9], np.float32)},
    ),
    *(
        Row(rl.monotone_quantiles, rows(quantiles=normal(N, 5)), grad="quantiles", kw={"how": how}, label=how)
        for how in ("pava", "median_out")
    ),
    Row(rl.crossing_penalty, rows(quantiles=normal(N, 4)), "mask", "quantiles", "quantiles", {"margin": 0.1}),
    Row(
        rl.weighted_ridge,
        rows(features=normal(N, K), targets=normal(N), weights=unit(N)),
        grad="features targets weights",
        kw={"l2": 0.1},
    ),
    Row(rl.variance_weights, rows(variance=unit(N), bonus=unit(N)), kw={"gamma": 0.5, "floor": 0.1}),
    Row(rl.moment_variance, rows(second_moment=unit(N), mean=unit(N)), kw={"error": 0.1}),
    Row(
        rl.elliptical_bonus,
        rows(features=normal(N, K)),
        grad="features",
        kw={"fit": rl.RidgeFit(np.zeros(K, np.float32), 0.1 * np.eye(K, dtype=np.float32))},
    ),
    Row(
        rl.aggregate_quantiles,
        rows(predictions=normal(N, 4, K), logits=normal(N, 4, K)),
        grad="predictions logits",
    ),
    Row(rl.best_of_n_targets, rows(advantages=normal(N, K)), "valid:NK", "advantages", kw={"threshold": 0.1}),
    Row(rl.continuation_discounts, rows(), "mask:NK", kw={"discount": 0.9}),
    # preference
    Row(rl.preference_score, rows(left=normal(N, 4), right=normal(N, 4)), grad="left right"),
    Row(rl.preference_gates, rows(logits=normal(N, K)), grad="logits"),
    *(
        Row(
            rl.group_preferences,
            rows(embeddings=normal(N, 4), **GROUPED),
            "mask",
            "embeddings",
            "embeddings",
            {"num_groups": 3, "output": output},
            label=output,
        )
        for output in ("score", "win")
    ),
    Row(
        rl.gpo_loss,
        rows(logp=normal(N), old_logp=normal(N), scores=normal(N)),
        "mask",
        "logp old_logp scores",
        "logp",
        {"beta": 0.5},
    ),
    Row(rl.brain_loss, {**FOUR, **GROUPED}, "mask", " ".join(FOUR), "logp", {"num_groups": 3}),
    Row(rl.weighted_nll, rows(logp=normal(N, K), weights=unit(N, K)), "mask:NK", "logp weights", "logp"),
    Row(rl.advantage_weights, rows(advantages=normal(N)), kw={"temperature": 0.5}),
    # calibration
    *(
        Row(
            rl.calibration_error,
            rows(confidence=unit(N), outcome=unit(N)),
            "mask",
            "confidence outcome",
            "confidence outcome",
            {"kind": kind, "num_bins": 3},
            label=kind,
        )
        for kind in ("ece", "ace", "mce")
    ),
    Row(rl.brier_score, rows(confidence=unit(N), outcome=unit(N)), "mask", "confidence outcome", "confidence outcome"),
    Row(
        rl.reliability_bins,
        rows(confidence=unit(N), outcome=unit(N)),
        "mask",
        "confidence outcome",
        "confidence outcome",
        {"num_bins": 3},
        numeric=False,
    ),
    Row(rl.apply_platt, rows(scores=normal(N)), grad="scores", kw={"scale": rl.PlattScale(2.0, 0.5)}),
    Row(
        rl.apply_isotonic,
        rows(scores=unit(N)),
        grad="scores",
        kw={"fit": rl.IsotonicFit(np.array([0.0, 1.0], np.float32), np.array([0.2, 0.7], np.float32))},
    ),
    Row(rl.fit_platt, rows(scores=normal(N), labels=unit(N)), "mask", "scores labels"),
    Row(rl.fit_isotonic, rows(scores=normal(N), labels=unit(N)), "mask", "scores labels"),
    Row(rl.isotonic_regression, rows(values=normal(N), weights=unit(N)), grad="values weights", order=None),
    Row(
        rl.venn_abers,
        rows(scores=normal(N), labels=integers(2, N)),
        "mask",
        "scores",
        kw={"test_scores": np.array([0.0, 1.0], np.float32)},
    ),
    Row(
        rl.conformal_pvalues,
        rows(scores=normal(N), good=integers(2, N)),
        "mask",
        "scores",
        kw={"test_scores": np.array([0.0, 1.0], np.float32)},
    ),
    Row(rl.benjamini_hochberg, rows(pvalues=unit(N)), "mask", "pvalues", kw={"level": 0.5}),
    Row(rl.e_benjamini_hochberg, rows(evalues=unit(N)), "mask", "evalues", kw={"level": 0.5}),
    Row(
        rl.conformal_interval,
        rows(cal_lower=normal(N), cal_upper=normal(N), cal_targets=normal(N)),
        "cal_mask",
        "cal_lower cal_upper cal_targets",
        kw={"lower": np.zeros(2, np.float32), "upper": np.ones(2, np.float32), "level": 0.5},
        label="finite",
    ),
    Row(
        rl.optimized_selection,
        rows(scores=normal(N, K), good=integers(2, N)),
        kw={
            "test_scores": np.random.default_rng(4).normal(size=(4, K)).astype(np.float32),
            "key": None,
            "level": 0.5,
            "pruning": "deterministic",
        },
    ),
    Row(rl.update_reward_mean, rows(rewards=normal(N)), "mask", "rewards", kw={"mean": 0.5}),
    # ensembles, labels and objectives
    *(
        Row(
            rl.penalized_rewards,
            rows(predictions=normal(N, K), variances=unit(N, K)),
            grad="predictions variances",
            kw={"coefficient": 0.5, "kind": kind},
            label=kind,
        )
        for kind in ("std", "loo_kl")
    ),
    Row(rl.judge_labels, rows(votes=unit(N, K)), "present:NK", "votes"),
    Row(rl.look_back_penalty, rows(values=unit(N, K)), "mask:prefix", "values", "values", {"coefficient": 0.5}),
    Row(rl.balanced_step_weights, rows(labels=unit(N, K)), "mask:NK", "labels"),
    *(
        Row(rl.hard_step_labels, rows(values=unit(N, K)), "mask:NK", "values", kw={"rising": rising}, label=str(rising))
        for rising in (False, True)
    ),
    Row(
        rl.judge_weights,
        rows(votes=unit(4, N), reference=unit(N)),
        order=None,
    ),
    Row(rl.objective_gates, rows(logits=normal(N, K)), grad="logits"),
    Row(
        rl.gated_objectives,
        rows(objectives=normal(N, K), gates=unit(N, K)),
        "valid",
        "objectives gates",
        "objectives gates",
    ),
    Row(
        rl.decorrelate,
        rows(objectives=normal(N, K), reference=normal(N)),
        "mask",
        "objectives reference",
        kw={"grid": np.array([0.0, 0.3, 0.6], np.float32)},
    ),
    Row(rl.verifier_rewards, rows(rewards=normal(N), outcome=unit(N)), grad="rewards outcome"),
    Row(rl.halting_distribution, rows(logits=normal(N, K)), grad="logits"),
    Row(rl.halting_loss, rows(losses=normal(N, K), logits=normal(N, K)), "mask", "losses logits", "losses logits"),
    Row(rl.quantile_exit, rows(probabilities=unit(N, K))),
    Row(
        rl.gated_selection,
        rows(ready=integers(2, N, 4, K), potential=unit(N, 4, K), final=unit(N, 4)),
        "mask:N4K",
        "potential",
    ),
    Row(rl.debias_transform, rows(penalties=unit(N)), grad="penalties", kw={"reference_index": 1}, order=None),
    Row(
        rl.ensemble_moments,
        rows(predictions=normal(3, N), variances=unit(3, N)),
        grad="predictions variances",
        order=None,
    ),
    Row(
        rl.ensemble_uncertainty,
        rows(predictions=normal(3, N), variances=unit(3, N), sample=normal(N)),
        grad="predictions variances sample",
        kw={"kind": "loglik_variance"},
        order=None,
    ),
    # sampling and tracking
    *(
        Row(
            rl.filter_weights,
            rows(rewards=normal(N), **GROUPED),
            "mask",
            "rewards",
            kw={"num_groups": 3, "kind": kind},
            label=kind,
        )
        for kind in ("best_random", "best_worst", "power")
    ),
    *(
        Row(
            rl.importance_weights,
            rows(logp=normal(N), behaviour_logp=normal(N)),
            "mask",
            "logp behaviour_logp",
            "logp",
            {"kind": kind},
            label=kind,
        )
        for kind in ("snis", "clip")
    ),
    Row(
        rl.control_variate_mean,
        rows(values=normal(N, K), weights=unit(N)),
        "mask",
        "values weights",
        "values weights",
        {"baselines": np.array([0.1, 0.2, 0.3], np.float32)},
    ),
    Row(
        rl.shared_proposal_logits,
        rows(logp=normal(N), values=normal(N, K)),
        kw={"baselines": np.array([0.1, 0.2, 0.3], np.float32)},
    ),
    Row(rl.budget_allocation, rows(solve_rate=unit(N)), "mask", "solve_rate", kw={"total": 16}, order=None),
    Row(rl.answer_confidence, rows(answer_ids=integers(3, N), **GROUPED), "mask", kw={"num_groups": 3}),
    Row(rl.best_of_n_weights, rows(scores=normal(N)), "mask", "scores", kw={"n": 2}),
    Row(
        rl.bon_curve,
        rows(proxy=normal(N, 4), gold=normal(N, 4)),
        "mask:N4",
        "proxy gold",
        "proxy gold",
        {"sizes": (1, 2)},
    ),
    Row(rl.fit_over_optimization, rows(kl=unit(N), gold=normal(N)), "mask", "kl gold", "gold kl", label="bon"),
    Row(rl.ranking_metrics, rows(chosen=normal(N), rejected=normal(N, K)), "mask:NK", "rejected"),
    Row(rl.plackett_luce_loss, rows(scores=normal(N, K)), "mask:NK", "scores", "scores"),
    Row(rl.best_of_n_kl, rows(n=lambda rng: 1 + rng.uniform(size=N).astype(np.float32)), grad="n"),
    Row(rl.best_of_n_win_rate, rows(n=unit(N)), grad="n"),
    Row(rl.midranks, rows(x=normal(N)), "mask", "x"),
    Row(rl.pearson, rows(x=normal(N), y=normal(N)), "mask", "x y", "x y"),
    Row(rl.spearman, rows(x=normal(N), y=normal(N)), "mask", "x y"),
    Row(rl.r_squared, rows(x=normal(N), y=normal(N)), "mask", "x y", "x y"),
    Row(rl.proxy_gold_report, rows(proxy=normal(N, K), gold=normal(N, K)), "mask:NK", "proxy gold", order=None),
    Row(rl.binned_r_squared, rows(proxy=normal(N), gold=normal(N), weights=unit(N)), kw={"num_bins": 3}),
    Row(rl.credit_concentration, rows(token_rewards=normal(N, K)), "mask:NK", "token_rewards", "token_rewards"),
]
MODULES = (
    "values extraction bellman_rank quantiles regression preference posterior imitation calibration isotonic conformal "
    "confidence pessimism step_labels multi_objective halting gated_selection sampling best_of_n ranking correlation "
    "tracking"
).split()


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
    """The same data with NaN behind the mask."""
    mask = data[row.mask.partition(":")[0]]
    dirty = dict(data)
    for name in row.hides.split():
        x = data[name]
        hidden = np.broadcast_to(~mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
        dirty[name] = np.where(hidden, np.nan, x)
    return dirty


def variants(row: Row, seed: int = 3, bits: int | None = None):
    """[clean, spoilt, empty, permuted, a bit up, a bit down], stacked; without a mask clean ones stand in."""
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
    """A number from what gradients flow to: a loss's total, or float arrays (scalars beside arrays are statistics)."""
    if isinstance(tree, rl.Loss):
        return tree.total
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    leaves = [x for x in leaves if x.ndim] or leaves
    return sum((jnp.arange(1, x.size + 1) * x.ravel()).sum() for x in leaves) if leaves else jnp.zeros(())


@functools.cache
def program(index: int):
    """Everything that needs compiling, in one compilation: compiling is nearly all of the time.

    Values, their gradients and scalars of the variants under vmap, and values of a plain call on the clean one; and a
    list with an entry for each trace.
    """
    row = TABLE[index]
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
def results(index: int):
    """What the program of a row gives on its variants, and that it was traced once."""
    run, traces = program(index)
    data = variants(TABLE[index])
    (values, gradients, numbers), plain = jax.tree.map(np.asarray, run(data))
    run(data)
    assert len(traces) == 1, "traced twice for one shape"
    return values, gradients, numbers, plain


def split(data):
    """(floats, the rest)."""
    floats = {k: v for k, v in data.items() if v.dtype == jnp.float32}
    return floats, {k: v for k, v in data.items() if k not in floats}


ROWS = pytest.mark.parametrize("index", range(len(TABLE)), ids=[row.name for row in TABLE])


def test_the_table_is_complete():
    names = {n for n in rl.__all__ if getattr(rl, n).__module__.rpartition(".")[2] in MODULES}
    functions = {n for n in names if not isinstance(getattr(rl, n), type)}
    assert functions == {row.fn.__name__ for row in TABLE}


@ROWS
def test_vmap_gives_what_a_plain_call_gives(index):
    values, _, _, plain = results(index)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(values), strict=True):
        np.testing.assert_allclose(x, y[0], rtol=2e-4, atol=2e-5)


@ROWS
def test_a_call_that_is_not_compiled_takes_numpy_and_gives_the_same(index):
    row = TABLE[index]
    _, _, _, plain = results(index)
    got = row.fn(**draw(row, 3), **row.kw)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


@ROWS
def test_nan_behind_masks_empty_masks_and_gradients(index):
    row = TABLE[index]
    values, gradients, _, _ = results(index)
    for x in jax.tree.leaves(values):
        np.testing.assert_array_equal(x[0], x[1])  # NaN behind the mask
        if row.fn is not rl.conformal_interval:  # infinite without calibration data
            assert np.isfinite(x).all()
    receives = row.grad.split()
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        np.testing.assert_array_equal(gradient[0], gradient[1])
        assert name in receives or not gradient.any(), f"{name} receives a gradient"
    for name in receives:
        assert gradients[name][0].any(), f"{name} receives none"


@ROWS
def test_gradients_are_those_of_differences(index):
    row = TABLE[index]
    if not row.grad or not row.numeric:
        pytest.skip("no gradient, or one that differences do not show")
    _, gradients, numbers, _ = results(index)
    slope = sum((gradients[name][0].astype(np.float64) * move).sum() for name, move in direction(row).items())
    difference = (float(numbers[4]) - float(numbers[5])) / (2 * STEP)
    scale = sum(np.abs(gradients[name][0] * move).sum() for name, move in direction(row).items())
    np.testing.assert_allclose(slope, difference, atol=0.01 * scale + 1e-2)


MASKED = pytest.mark.parametrize(
    "index",
    [i for i, row in enumerate(TABLE) if row.mask],
    ids=[row.name for row in TABLE if row.mask],
)


@MASKED
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2 ** (N * 4 * K) - 1), st.integers(0, 99))
def test_any_mask_and_any_layout_of_groups(index, bits, seed):
    """NaN behind any mask, groups of any sizes (empty ones included), any order: no difference, nothing but numbers."""
    row = TABLE[index]
    (values, gradients, _), _ = program(index)[0](variants(row, seed, bits))
    for x in map(np.asarray, jax.tree.leaves(values)):
        np.testing.assert_array_equal(x[0], x[1])
        if row.fn is not rl.conformal_interval:
            assert np.isfinite(x).all()
        if row.order:
            follows = x.ndim > 1 and x.shape[1] == N and row.fn is not rl.fit_isotonic
            np.testing.assert_allclose(x[0][ORDER] if follows else x[0], x[3], rtol=1e-3, atol=1e-4)
    for gradient in map(np.asarray, jax.tree.leaves(gradients)):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[0], gradient[1])


@ROWS
def test_low_precision_and_integers_in_float32_out(index):
    row = TABLE[index]
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int32):
        shapes = {
            name: jax.ShapeDtypeStruct(x.shape, dtype if x.dtype == np.float32 else x.dtype)
            for name, x in draw(row, 0).items()
        }
        for leaf in jax.tree.leaves(jax.eval_shape(lambda x, row=row: row.fn(**x, **row.kw), shapes)):
            assert leaf.dtype in (np.float32, np.bool_, np.int32)


@ROWS
def test_the_order_of_the_batch_is_immaterial(index):
    row = TABLE[index]
    if row.order is None:
        pytest.skip("rows are a sequence")
    values, _, _, _ = results(index)
    for x in jax.tree.leaves(values):
        follows = x.ndim > 1 and x.shape[1] == N and row.fn is not rl.fit_isotonic
        np.testing.assert_allclose(x[0][ORDER] if follows else x[0], x[3], rtol=2e-4, atol=2e-5)
