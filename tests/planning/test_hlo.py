"""The text of a program, read."""

import pytest

from swa_jax.planning.hlo import arrays_of, read_module, type_bytes
from swa_jax.planning.traffic import traffic_of
from swa_jax.planning.worker import kernel_calls

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]}

%slice_of_layer (p.0: f32[12,64,64], p.1: s32[]) -> f32[64,64] {
  %p.0 = f32[12,64,64]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,64,64]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %flat = f32[64,64]{1,0} bitcast(%cut)
}

%product (a: f32[64,64], b: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %b = f32[64,64]{1,0} parameter(1)
  ROOT %dot.1 = f32[64,64]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], f32[12,64,64], f32[64,64])) -> (s32[], f32[12,64,64], f32[64,64]) {
  %arg = (s32[], f32[12,64,64]{2,1,0}, /*index=2*/f32[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = f32[12,64,64]{2,1,0} get-tuple-element(%arg), index=1
  %x = f32[64,64]{1,0} get-tuple-element(%arg), index=2
  %layer = f32[64,64]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice_of_layer
  %y = f32[64,64]{1,0} fusion(%x, %layer), kind=kCustom, calls=%product
  %k = f32[64,64]{1,0} custom-call(%y), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/while/body/my_kernel/pallas_call"}
  ROOT %next = (s32[], f32[12,64,64]{2,1,0}, f32[64,64]{1,0}) tuple(%i, %w, %k)
}

%condition (arg.1: (s32[], f32[12,64,64], f32[64,64])) -> pred[] {
  %arg.1 = (s32[], f32[12,64,64]{2,1,0}, f32[64,64]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (w.1: f32[12,64,64], x.1: f32[64,64]) -> f32[64,64] {
  %w.1 = f32[12,64,64]{2,1,0} parameter(0)
  %x.1 = f32[64,64]{1,0} parameter(1)
  %zero.1 = s32[] constant(0)
  %start = (s32[], f32[12,64,64]{2,1,0}, f32[64,64]{1,0}) tuple(%zero.1, %w.1, %x.1)
  %loop = (s32[], f32[12,64,64]{2,1,0}, f32[64,64]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %out = f32[64,64]{1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501
MATRIX = 64 * 64 * 4


def test_a_loop_runs_its_body_as_often_as_it_says():
    module = read_module(TEXT)
    assert module.times == {"main": 1, "body": 12}
    assert module.unknown_loops == ()


def test_a_loop_that_says_nothing_runs_once_and_is_named():
    module = read_module(TEXT.replace('"known_trip_count":{"n":"12"}', ""))
    assert module.times == {"main": 1, "body": 1}
    assert module.unknown_loops == ("loop",)


def test_a_slice_of_stacked_parameters_is_read_as_one_layer():
    traffic = traffic_of(read_module(TEXT))
    assert traffic.other_bytes == 12 * (MATRIX + MATRIX + 4)  # and the index
    # x and the layer are read and y written; the kernel reads y and writes k.
    assert traffic.product_bytes == 12 * 5 * MATRIX


def test_products_count_two_flops_for_each_number_that_is_summed():
    assert traffic_of(read_module(TEXT)).product_flops == 12 * 2 * 64**3


def test_kernels_are_counted_by_name_and_round():
    assert kernel_calls(read_module(TEXT)) == {"my_kernel": 12}


def test_an_update_in_place_moves_what_is_updated():
    text = """HloModule m

%update (p.0: f32[100,8], p.1: f32[1,8]) -> f32[100,8] {
  %p.0 = f32[100,8]{1,0} parameter(0)
  %p.1 = f32[1,8]{1,0} parameter(1)
  %i = s32[] constant(3)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%p.0, %p.1, %i, %i)
}

ENTRY %main (a: f32[100,8], b: f32[1,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  ROOT %f = f32[100,8]{1,0} fusion(%a, %b), kind=kLoop, calls=%update
}
"""
    assert traffic_of(read_module(text)).other_bytes == 2 * 8 * 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("f32[2,3]{1,0}", 24),
        ("bf16[8]", 16),
        ("s32[]", 4),
        ("pred[5]", 5),
        ("s4[5]", 3),
        ("f8e4m3fn[7]", 7),
        ("c64[2]", 16),
        ("(f32[2]{0}, /*index=1*/(s8[3], token[]))", 11),
        ("u64[0,4]", 0),
    ],
)
def test_bytes_of_types(text, count):
    assert type_bytes(text) == count


def test_arrays_of_a_tuple():
    assert arrays_of("(f32[2,3]{1,0}, s32[])") == [("f32", (2, 3)), ("s32", ())]


@pytest.mark.parametrize("text", ["", "no program", "%f (x: f32[]) -> f32[] {\n}"])
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ValueError, match="no compiled program"):
        read_module(text)
