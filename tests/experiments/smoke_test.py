"""The small experiments run in their smallest configuration and give finite tables."""

import importlib
import math

import pytest

from experiments import report
from prm_jax.verifiers.sandbox import available_levels

pytestmark = pytest.mark.heavy

NAMES = (
    pytest.param("agents", marks=pytest.mark.slow),
    "best_of_n",
    pytest.param("calculator", marks=pytest.mark.slow),
    pytest.param("clip_delta", marks=pytest.mark.slow),
    pytest.param("confidence", marks=pytest.mark.slow),
    "conformal_selection",
    "cyclic_preferences",
    "early_exit",
    "estimators",
    "feature_rank",
    "implicit_rewards",
    "judged_inputs",
    "multi_objective",
    pytest.param("mutation_labels", marks=pytest.mark.slow),
    "omega_labels",
    pytest.param("pav", marks=pytest.mark.slow),
    pytest.param("programs", marks=pytest.mark.slow),
    "provers",
    "quantile_values",
    pytest.param("quantization", marks=pytest.mark.slow),
    "reward_hacking",
    "reward_uncertainty",
    "rollout_filtering",
    "search_budget",
    pytest.param("self_training", marks=pytest.mark.slow),
    "step_labels",
    "step_preference",
    "symbolic_regression",
    pytest.param("tool_judge", marks=pytest.mark.slow),
    "unit_test_quality",
    pytest.param("unit_test_writer", marks=pytest.mark.slow),
    "value_learning",
)


NEED_A_SANDBOX = ("mutation_labels", "programs")


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name):
    if name in NEED_A_SANDBOX and all(available_levels().values()):
        pytest.skip("no sandbox on this machine")
    module = importlib.import_module(f"experiments.{name}.main")
    tables = module.run(module.SMOKE)
    numbers = [value for rows in tables.values() for row in rows.values() for value in row.values()]
    assert numbers and all(math.isfinite(value) for value in numbers)
    assert len(report.render(tables).splitlines()) > len(tables)
