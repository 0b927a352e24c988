"""Bytes of a compiled program, counted by hand in a program that is written out."""

import pytest

from gr4ad_jax.accelerators import hbm_bytes

# Arrays of 4 KB (f32[1024]) and 2 KB (bf16[1024]); S(1) is the chip's memory.
PROGRAM = """HloModule jit_run, is_scheduled=true

%fused (param_0: f32[4,1024], param_1: s32[]) -> f32[1,1024] {
  %param_0 = f32[4,1024]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice.1 = f32[1,1024]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,1024}
}

%written (param_0: f32[4,1024], param_1: f32[1,1024]) -> f32[4,1024] {
  %param_0 = f32[4,1024]{1,0} parameter(0)
  %param_1 = f32[1,1024]{1,0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %update.1 = f32[4,1024]{1,0} dynamic-update-slice(%param_0, %param_1, %zero, %zero)
}

%once (one: f32[1024]) -> f32[1024] {
  %one = f32[1024]{0} parameter(0)
  ROOT %negated = f32[1024]{0} negate(%one), metadata={op_name="branch"}
}

%again (other: f32[1024]) -> f32[1024] {
  %other = f32[1024]{0} parameter(0)
  ROOT %rooted = f32[1024]{0} sqrt(%other), metadata={op_name="branch"}
}

%condition (arg: (s32[], f32[1024])) -> pred[] {
  %arg = (s32[], f32[1024]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  %step = s32[] get-tuple-element(%arg), index=0
  ROOT %less = pred[] compare(%step, %limit), direction=LT
}

%body (arg: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %arg = (s32[], f32[1024]{0}) parameter(0)
  %x = f32[1024]{0} get-tuple-element(%arg), index=1
  %twice = f32[1024]{0} add(%x, %x), metadata={op_name="loop"}
  ROOT %both = (s32[], f32[1024]{0}) tuple(%x, %twice)
}

ENTRY %main (a: f32[4,1024], b: bf16[1024]) -> f32[1024] {
  %a = f32[4,1024]{1,0:T(8,128)} parameter(0)
  %b = bf16[1024]{0:T(1024)(128)(2,1)} parameter(1)
  %number = s32[]{:T(128)S(1)} constant(1)
  %row = f32[1,1024]{1,0:T(8,128)S(1)} fusion(%a, %number), kind=kLoop, calls=%fused, metadata={op_name="take"}
  %put = f32[4,1024]{1,0:T(8,128)} fusion(%a, %row), kind=kLoop, calls=%written, metadata={op_name="put"}
  %copy-start = (bf16[1024]{0:S(1)}, bf16[1024]{0}, u32[]{:S(2)}) copy-start(%b), metadata={op_name="fetch"}
  %copy-done = bf16[1024]{0:S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[1024]{0}), bf16[256]{0:S(1)}, s32[]{:S(2)}) slice-start(%b), metadata={op_name="fetch"}
  %slice-done = bf16[256]{0:S(1)} slice-done(%slice-start)
  %side = bf16[256]{0:S(1)} custom-call(%slice-done), custom_call_target="ConcatBitcast"
  %kernel = f32[1024]{0} custom-call(%copy-done, %b, /*index=2*/%side), custom_call_target="tpu_custom_call", metadata={op_name="kernel"}
  %either = f32[1024]{0} conditional(%number, %kernel, %kernel), branch_computations={%once, %again}
  %start = (s32[], f32[1024]{0}) tuple(%number, %kernel)
  %loop = (s32[], f32[1024]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[1024]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ("scope", "expected"),
  [
    ("take", 4096),  # a row of a, into the chip
    ("put", 4096),  # a row of a, changed in place
    ("fetch", 2048 + 512),  # all of b, and a quarter of it
    ("kernel", 2048 + 4096),  # b once from memory, and what it gives
    ("branch", 2 * 2 * 4096),  # one of two that are read, and its result; both count
    ("loop", 5 * 3 * 4096),  # two operands and a result, five times
  ],
)
def test_bytes_of_an_operation(scope, expected):
  assert hbm_bytes.by_scope(PROGRAM)[scope] == expected


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hbm_bytes.by_scope("HloModule jit_run\n")


def test_what_only_names_arrays_moves_nothing():
  moved = hbm_bytes.by_scope(PROGRAM)
  assert set(moved) - {"take", "put", "fetch", "kernel", "branch", "loop"} <= {""}
  assert moved[""] == 0
