"""Whole PRIME steps compiled for TPU slices that are not there: ``make aot``.

Needs libtpu (pip install 'prm-jax[tpu]'). Each compiles for minutes. The figures are those of docs/pods.md.
"""

import importlib.util

import pytest

from experiments.benchmarks.pods import CASES, figures

pytestmark = [
    pytest.mark.optional,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'prm-jax[tpu]'"),
]


@pytest.mark.parametrize("layers", [2, None], ids=["2 layers", "all layers"])
@pytest.mark.parametrize("name", CASES)
def test_the_step_fits_sends_little_and_repeats_nothing(name, layers):
    case = CASES[name]
    found = figures(case, layers)
    assert not found["refusal"]
    assert found["peak_bytes"] <= found["device_bytes"]
    assert found["operations_ratio"] <= 1.1
    assert found["peak_bytes"] / 2 <= found["arithmetic_update_bytes"] <= 2 * found["peak_bytes"]
    assert any(kernel.startswith("linear_logprob") for kernel in found["kernels"])
    assert any("splash" in kernel for kernel in found["kernels"])
    if layers is None:  # with few layers, embedding and head weigh more
        assert found["sent_ratio"] <= case.most_sent
