"""Communication and custom calls read from HLO text: a program of this machine, and forms that only TPUs have."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from prm_jax.models.sharding import make_mesh
from prm_jax.runs.hlo_accounting import Collective, collective_bytes, collectives, custom_calls, largest_arrays

_TPU = """HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=16

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[4,32] {
  %input = f32[64,32]{1,0} parameter(0)
  %ar = f32[64,32]{1,0:T(8,128)} all-reduce(%input), channel_id=7, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %slice = f32[4,32]{1,0} dynamic-slice(%ar, %c), dynamic_slice_sizes={4,32}
}

%async_gather (p: bf16[8,4]) -> bf16[8,16] {
  ROOT %gather = bf16[8,16]{1,0} all-gather(%p), replica_groups=[4,4]<=[16], dimensions={1}
}

%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %start = (bf16[8,4]{1,0}, bf16[8,16]{1,0:T(8,128)(2,1)}) all-gather-start(%x),
 replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}
  %done = bf16[8,16]{1,0} all-gather-done(%start)
  %begun = ((bf16[8,4]{1,0}), bf16[8,16]{1,0}, u32[]) async-start(%x), calls=%async_gather
  %ended = bf16[8,16]{1,0} async-done(%begun), calls=%async_gather
  %kernel = (f32[512]{0}, f32[512]{0}) custom-call(%x, %y),
 custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/head/pallas_call"}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %x)
}

%condition (state: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(28)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%first (p: f32[4,8]) -> f32[4,8] {
  %g = f32[64,8]{1,0} all-gather(%p), replica_groups=mesh['a'=4,'b'=4] {'a','b'},
 dimensions={0}, frontend_attributes={chain_id="3"}
}

%inner_body (p: (f32[4,8])) -> (f32[4,8]) {
  %f3 = f32[4,8]{1,0} fusion(%a), kind=kCustom, calls=%second
}

%second (p: f32[4,8]) -> f32[4,8] {
  %g = f32[64,8]{1,0} all-gather(%p), replica_groups=mesh['a'=4,'b'=4] {'a','b'},
 dimensions={0}, frontend_attributes={chain_id="3"}
}

ENTRY %main (a: f32[64,32]) -> f32[4,32] {
  %loop = (s32[], bf16[8,4]) while(%init), condition=%condition, body=%body
  %f1 = f32[4,8]{1,0} fusion(%a), kind=kCustom, calls=%first
  %overlapped = (f32[4,8]) while(%f1), condition=%condition, body=%inner_body
  %send = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[4,32]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_forms_of_the_tpu_compiler():
    gather = Collective("all-gather", 8 * 16 * 2, 4, (28,), (("bf16", (8, 16)),), "")
    expected = [
        gather,
        gather,
        Collective("all-gather", 64 * 8 * 4, 16, (), (("f32", (64, 8)),), ""),
        Collective("collective-permute", 16, 16, (), (("f32", (4,)),), ""),
        Collective("reduce-scatter", 64 * 32 * 4, 16, (), (("f32", (64, 32)),), ""),
    ]
    assert collectives(_TPU) == expected
    assert collective_bytes(_TPU) == {
        "all-gather": 2 * 28 * 256 * 3 // 4 + 2048 * 15 // 16,
        "collective-permute": 16,
        "reduce-scatter": 8192 * 15 // 16,
    }
    (kernel,) = custom_calls(_TPU)
    assert (kernel.target, kernel.name, kernel.times) == ("tpu_custom_call", "jit(step)/head/pallas_call", 28)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{}", 8),
        ("{{0,4},{1,5},{2,6},{3,7}}", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_sizes_of_groups(groups, size):
    reduced = f"f32[6]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%add"
    text = f"HloModule m, num_partitions=8\n\nENTRY %main (a: f32[6]) -> f32[6] {{\n  ROOT %r = {reduced}\n}}\n"
    (one,) = collectives(text)
    assert one.group == size and one.sent == 2 * 24 * (size - 1) // size


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_a_compiled_loop_counts_its_iterations():
    mesh = make_mesh(2, 4, 1)

    def local(x, kernels):
        def body(x, kernel):
            whole = jax.lax.all_gather(kernel, "fsdp", axis=0, tiled=True)
            return jnp.tanh(x @ whole), None

        return jax.lax.psum(jax.lax.scan(body, x, kernels)[0], ("data", "fsdp"))

    run = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "fsdp")), out_specs=P(), check_vma=False)
    shapes = (jax.ShapeDtypeStruct((2, 8), jnp.float32), jax.ShapeDtypeStruct((5, 8, 8), jnp.float32))
    text = jax.jit(run).lower(*shapes).compile().as_text()
    assert collective_bytes(text) == {"all-gather": 5 * 256 * 3 // 4, "all-reduce": 2 * 64 * 7 // 8}
    assert [(one.group, one.loops) for one in collectives(text)] == [(4, (5,)), (8, ())]
    assert custom_calls(text) == []
    assert ("f32", (8, 8)) in [shape for _, shape in largest_arrays(text)]
