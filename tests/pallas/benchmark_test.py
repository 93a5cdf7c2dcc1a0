"""The benchmark of log-probs runs, at tiny sizes, and its contenders agree with float64."""

import json

import pytest

from experiments.benchmarks import linear_logprob as benchmark


@pytest.mark.parametrize("mode", ["gradient", "score 50%"])
def test_smoke(mode):
    config = benchmark.SMOKE
    result = benchmark.measure(config, (64, 16, 512), config.dtype, mode)
    assert {"prm_jax xla_vocab", "prm_jax xla_token", "naive XLA, float32 logits"} <= set(result["rows"])
    assert set(result["missing"]) >= {"torch", "Liger-Kernel", "Cut Cross-Entropy"}
    assert all(row["error"] < 1e-5 for row in result["rows"].values())
    assert mode in benchmark.markdown(result) and json.dumps(result)


def test_there_is_nothing_to_tune_on_a_cpu():
    with pytest.raises(SystemExit, match="run this on a TPU or GPU"):
        benchmark.tune(benchmark.SMOKE, benchmark.SMOKE.shapes, "float32")
