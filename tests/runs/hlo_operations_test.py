"""Operations read from HLO text: a program of this machine, and forms that only TPUs have."""

import jax
import jax.numpy as jnp
import pytest

from prm_jax.runs.hlo_accounting import collective_bytes
from prm_jax.runs.hlo_operations import kernel_calls, operations

_HEADER = "HloModule m, num_partitions=16\n\n"

_WINDOWED = (
    _HEADER
    + """%body (state: (bf16[64,48], bf16[1,3,8], u32[])) -> (bf16[64,48], bf16[1,3,8], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %state = (bf16[64,48]{1,0}, bf16[1,3,8]{2,1,0}, u32[]) parameter(0)
  %own = bf16[1,3,8]{2,1,0} get-tuple-element(%state), index=1
  %i = u32[] get-tuple-element(%state), index=2
  %sent = (bf16[1,3,8]{2,1,0}, bf16[1,3,8]{2,1,0}, u32[], u32[]) collective-permute-start(%own),
 source_target_pairs={{0,1},{1,0}}
  %left = bf16[64,2,3]{2,1,0} fusion(%state), kind=kLoop, calls=%other
  %right = bf16[2,3,8]{2,1,0} fusion(%state), kind=kLoop, calls=%other
  %product = bf16[64,8,1]{1,0,2:T(8,128)(2,1)} convolution(%left, %right), window={size=2}, dim_labels=b0f_0io->bf0
  %next = u32[] add(%i, %two)
  ROOT %t = (bf16[64,48]{1,0}, bf16[1,3,8]{2,1,0}, /*index=2*/u32[]) tuple(%x, %own, /*index=2*/%next)
}

%condition (state: (bf16[64,48], bf16[1,3,8], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %state = (bf16[64,48]{1,0}, bf16[1,3,8]{2,1,0}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%state), index=2
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (a: bf16[64,48]) -> bf16[64,48] {
  %loop = (bf16[64,48], bf16[1,3,8], u32[]) while(%init), condition=%condition, body=%body
}
"""
)


def test_a_loop_over_pieces_of_a_gathered_matrix():
    """Two pieces per iteration: the counter's increment is read from the body."""
    assert operations(_WINDOWED) == {"products": 4 * 2 * 64 * 8 * 2 * 3}
    assert collective_bytes(_WINDOWED) == {"collective-permute": 4 * 1 * 3 * 8 * 2}


def _one(instruction: str, left: str, right: str) -> float:
    lines = [f"  %a = {left} parameter(0)", f"  %b = {right} parameter(1)", f"  ROOT %r = {instruction}"]
    text = _HEADER + "ENTRY %main (a: f32[2], b: f32[2]) -> f32[2] {\n" + "\n".join(lines) + "\n}\n"
    return operations(text)["products"]


def test_products_written_as_convolutions():
    plain = "f32[32,5]{1,0} convolution(%a, %b), dim_labels=bf_io->bf"
    assert _one(plain, "f32[32,7]{1,0}", "f32[7,5]{1,0}") == 2 * 32 * 7 * 5
    # A batch of four products, as a convolution in which every position has one valid element.
    batched = (
        "f32[4,6,9]{2,1,0} convolution(%a, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
    )
    assert _one(batched, "f32[4,6,5]{2,1,0}", "f32[4,5,9]{2,1,0}") == 2 * 4 * 6 * 5 * 9
    dot = "f32[3,6,9]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}"
    assert _one(dot, "f32[3,6,5]{2,1,0}", "f32[3,5,9]{2,1,0}") == 2 * 3 * 6 * 5 * 9


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("linear_logprob_forward", "s32[256,1]{1,0}, f32[256,8]{1,0}, bf16[256,512]{1,0}, bf16[1024,512]{1,0}",
         {"head": 2 * 256 * 512 * 1024}),
        ("linear_logprob_backward", "s32[256,1]{1,0}, f32[256,8]{1,0}, bf16[256,512]{1,0}, bf16[512,1024]{1,0}",
         {"head": 3 * 2 * 256 * 512 * 1024}),
        ("splash_mha_fwd_residuals", "s8[8,8]{1,0}, bf16[2,4,1024,128]{3,2,1,0}, bf16[2,1,1024,128]{3,2,1,0}",
         {"attention": 2 * 2 * 2 * 4 * 1024 * 128 * 768}),
        ("splash_mha_dkv_segmented_no_residuals", "bf16[4,256,128]{2,1,0}, bf16[1,256,128]{2,1,0}",
         {"attention": 4 * 2 * 4 * 256 * 128 * 256}),
        ("something_else", "bf16[4,256,128]{2,1,0}", {}),
    ],
)  # fmt: skip
def test_kernels_count_by_their_shapes(name, shapes, expected):
    call = (
        f'f32[256,128]{{1,0}} custom-call(%a, %b), custom_call_target="tpu_custom_call", '
        f'operand_layout_constraints={{{shapes}}}, metadata={{op_name="jit(step)/transpose(jvp({name}))/pallas_call"}}'
    )
    text = _HEADER + f"ENTRY %main (a: f32[2]) -> f32[2] {{\n  ROOT %r = {call}\n}}\n"
    assert operations(text) == {"products": 0, **expected}
    assert kernel_calls(text) == {name: 1}


def test_a_compiled_scan_counts_its_iterations():
    def run(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    shapes = (jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32))
    text = jax.jit(jax.grad(lambda x, kernels: run(x, kernels).sum(), 1)).lower(*shapes).compile().as_text()
    # Forward, and two products in each of five backward iterations, the first input's gradient left out or not.
    forward = 5 * 2 * 16 * 32 * 32
    assert 3 * forward * 14 / 15 <= operations(text)["products"] <= 3 * forward
