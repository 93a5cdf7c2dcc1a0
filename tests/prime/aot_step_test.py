"""Whole PRIME steps compiled for TPU slices that are not there: ``make aot``.

Needs libtpu (pip install 'prm-jax[tpu]'). Each of the dense ones compiles for minutes. Their figures are those of
docs/pods.md.
"""

import dataclasses
import importlib.util

import pytest

from experiments.benchmarks.pods import CASES, figures
from prm_jax.models import ModelConfig
from prm_jax.prime.accelerators import find_accelerator
from prm_jax.prime.plan_compile import compile_step
from prm_jax.prime.presets import PRESETS

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


SPARSE = ModelConfig(
    architecture="mixtral", vocab_size=4096, hidden_size=512, intermediate_size=1024, num_layers=2, num_heads=4,
    num_kv_heads=4, head_dim=128, num_experts=8, experts_per_token=2, dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_a_sparse_step_for_a_slice_sends_no_experts(quantize):
    """Experts over an expert axis, all of them training or, in 4 bits under adapters, frozen."""
    options = PRESETS["qwen2.5-7b-math"]
    rank, change = 0 if quantize == "none" else 16, dataclasses.replace
    options = change(
        options,
        model=change(options.model, quantize=quantize, lora_rank=rank),
        rollout=change(options.rollout, prompts_per_step=4, max_prompt_tokens=128, max_new_tokens=384),
        prm=change(options.prm, minibatches=1, microbatch_tokens=0, lora_rank=rank, balance_coef=0.01),
        policy=change(options.policy, minibatches=1, microbatch_tokens=0, balance_coef=0.01),
        mesh=change(options.mesh, data=1, fsdp=1, tensor=1, expert=4),
    )
    step = compile_step(options, SPARSE, find_accelerator("v5e"), devices=4)
    assert not step.refusal
    assert any("splash" in kernel for kernel in step.kernels) and any("linear" in kernel for kernel in step.kernels)
    assert any("packed_product" in kernel for kernel in step.kernels) == (quantize == "int4")
    # What goes back to the devices of the tokens, the reduce-scatters, was gathered in the layers before; the rest of
    # what is gathered is less than all experts, once, in bfloat16.
    experts = 2 * SPARSE.num_layers * 3 * SPARSE.num_experts * SPARSE.hidden_size * SPARSE.intermediate_size
    assert step.collectives["all-gather"] - step.collectives["reduce-scatter"] < 3 / 4 * experts
