"""Reward models on a few named features of a solution, fitted to a table: small, readable, and fitted in a moment.

With features that people name, some hundred preferences suffice: arXiv 2402.15473.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import stats
from prm_jax.data.problems import problem_hash
from prm_jax.data.rows import read_rows
from prm_jax.errors import UserError
from prm_jax.option_values import suggest


@dataclasses.dataclass(frozen=True)
class FeatureModel:
    """A weighted sum of features.

    Attributes:
      weights: feature -> what one standard deviation of it is worth.
      means, deviations: of each feature in the table that it was fitted to.
      accuracy: share of held-out pairs (or, without groups, of held-out right and wrong rows) that it orders rightly;
        NaN where there are none.
    """

    weights: dict[str, float]
    means: dict[str, float]
    deviations: dict[str, float]
    accuracy: float

    def score(self, row: Mapping[str, Any]) -> float:
        """The score of a row with all features; higher is better."""
        return sum(
            weight * (_number(row, name, "the row") - self.means[name]) / self.deviations[name]
            for name, weight in self.weights.items()
        )


def fit_features(
    table: str | pathlib.Path | Iterable[Mapping[str, Any]],
    features: Sequence[str],
    *,
    outcome: str = "outcome",
    group: str = "",
    l2: float = 1.0,
) -> FeatureModel:
    """Fits a reward model to a table.

    With `group`, rows of a group with different outcomes are preferences (logistic regression on the differences);
    without, the outcome is regressed on the features (ridge). Half of the groups, or rows, is held out for the
    accuracy; the weights are those of the whole table.

    Args:
      table: a data file (CSV, JSON lines, Parquet ...) or rows.
      features: names of numeric columns.
      outcome: column that says how good a row is.
      group: column that says which rows are compared; "": none.
      l2: penalty on the weights of standardised features.

    Raises:
      UserError: a missing column (the nearest is named), a value that is not a finite number, or nothing to compare.
    """
    where = str(table) if isinstance(table, str | pathlib.Path) else "the table"
    rows = [read() for _, read in read_rows(table)] if isinstance(table, str | pathlib.Path) else list(table)
    if not rows or not features:
        raise UserError(f"{where}: expected rows and the names of features, found {len(rows)} and {len(features)}")
    for name in (*features, outcome, *([group] if group else [])):
        if name not in rows[0]:
            raise UserError(f"{where} has no column {name!r}; {suggest(name, rows[0], 'columns')}")
    values = np.asarray([[_number(row, name, f"{where}, row {i}") for name in features] for i, row in enumerate(rows)])
    good = np.asarray([_number(row, outcome, f"{where}, row {i}") for i, row in enumerate(rows)])
    names = [str(row[group]) if group else str(i) for i, row in enumerate(rows)]
    means, deviations = values.mean(0), values.std(0)
    deviations = np.where(deviations > 0, deviations, 1.0)
    scaled = ((values - means) / deviations).astype(np.float32)
    held_out = np.asarray([problem_hash(name) % 2 == 0 for name in names])
    fit = _fit_pairs if group else _fit_rows
    whole = fit(scaled, good, names, l2)
    if whole is None:
        raise UserError(f"{where}: no two rows of a {group} differ in {outcome!r}: there is nothing to compare")
    part = fit(scaled[~held_out], good[~held_out], [n for n, out in zip(names, held_out, strict=True) if not out], l2)
    tested = [n if group else "" for n, out in zip(names, held_out, strict=True) if out]
    accuracy = math.nan if part is None else _accuracy(scaled[held_out] @ part, good[held_out], tested)
    labelled = zip(features, whole, means, deviations, strict=True)
    columns = [(name, float(w), float(m), float(d)) for name, w, m, d in labelled]
    return FeatureModel(
        {name: w for name, w, _, _ in columns}, {name: m for name, _, m, _ in columns},
        {name: d for name, _, _, d in columns}, accuracy,
    )  # fmt: skip


def _fit_rows(x: np.ndarray, good: np.ndarray, names: Sequence[str], l2: float) -> np.ndarray | None:
    if not len(x):
        return None
    fit = stats.weighted_ridge(x, (good - good.mean()).astype(np.float32), np.ones(len(x), np.float32), l2=l2)
    return np.asarray(fit.coefficients)


def _fit_pairs(x: np.ndarray, good: np.ndarray, names: Sequence[str], l2: float) -> np.ndarray | None:
    """Bradley-Terry on features, by Newton's method."""
    pairs = _pairs(good, names)
    if not len(pairs):
        return None
    differences = jnp.asarray(x[pairs[:, 0]] - x[pairs[:, 1]])

    def loss(weights: jax.Array) -> jax.Array:
        return jax.nn.softplus(-differences @ weights).sum() + 0.5 * l2 * jnp.square(weights).sum()

    def step(weights: jax.Array, _: None) -> tuple[jax.Array, None]:
        move = jnp.linalg.solve(jax.hessian(loss)(weights), jax.grad(loss)(weights))
        tried = weights - jnp.asarray([1.0, 0.3, 0.1, 0.0])[:, None] * move
        return tried[jnp.argmin(jax.vmap(loss)(tried))], None

    start = jnp.zeros(x.shape[1], jnp.float32)
    return np.asarray(jax.jit(lambda w: jax.lax.scan(step, w, None, length=20)[0])(start))


def _pairs(good: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[P, 2] rows of one group, the better one first."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    found = [(i, j) for own in groups.values() for i in own for j in own if good[i] > good[j]]
    return np.asarray(found, np.int64).reshape(-1, 2)


def _accuracy(scores: np.ndarray, good: np.ndarray, names: Sequence[str]) -> float:
    pairs = _pairs(good, names)
    if not len(pairs):
        return math.nan
    gap = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: the column {name!r} holds {value!r}, expected a finite number")
    return number
