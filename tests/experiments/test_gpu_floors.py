"""The floors count what brute force counts."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from experiments.kernel_speed.cases import PARTS
from experiments.kernel_speed.gpu.floors import (
    Peaks,
    Work,
    attention_work,
    decode_work,
    floor,
    matrix_step_work,
    matrix_work,
    raw_attention_work,
)
from experiments.kernel_speed.gpu.matrix_memory.programs import matrix_sets, program
from experiments.kernel_speed.gpu.programs import (
    Forms,
    ProgramKey,
    attention_operation,
    attention_program,
    block_visits,
    input_sets,
)
from experiments.kernel_speed.gpu.sizes import (
    CHUNKED,
    FORMS,
    HEADS,
    DecodeShape,
    GpuSizes,
    MatrixShape,
    MatrixStep,
    Shape,
)
from pallas_kernels.local_attention.chunked import BLOCK
from pallas_kernels.local_attention.step import local_attention_step, window_cache
from pallas_kernels.mlstm import initial_state, mlstm

SHAPE = Shape(24, 16, (5, None), tokens=72, query_heads=4, kv_heads=2)


def visible(row, window):
    window = row if window is None else window
    pairs = itertools.product(range(row), repeat=2)
    return [(t, s) for t, s in pairs if 0 <= t - s < window]


def nbytes(*trees):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


@pytest.mark.parametrize("window", [1, 5, 23, 24, 100, None])
def test_flops_are_two_for_each_number_of_each_visible_product(window):
    numbers = len(visible(24, window)) * SHAPE.batch * SHAPE.query_heads * SHAPE.width
    # q k and p v; then q k again, dp, dv, dq, dk.
    assert attention_work(SHAPE, window, "forward").flops == 2 * 2 * numbers
    assert attention_work(SHAPE, window, "with gradients").flops == 2 * 7 * numbers


def results_of(part):
    """The inputs of the attention, and the shapes of its results."""
    q, k, v, dout = input_sets(SHAPE, seed=0)[0]
    operation = attention_operation(CHUNKED, Forms())
    program = attention_program(operation, ProgramKey(CHUNKED, 5, part))
    return (q, k, v, dout), jax.eval_shape(program, jnp.int32(5), q, k, v, dout)


def test_bytes_are_those_of_every_array_read_or_written():
    (q, k, v, dout), out = results_of("forward")
    moved = nbytes(q, k, v, out)
    assert attention_work(SHAPE, 5, "forward").bytes == moved
    _, (out, gradients) = results_of("with gradients")
    statistic = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)  # log-sum-exp
    moved += nbytes(statistic)
    moved += nbytes(statistic, q, k, v, out, dout) + nbytes(gradients)
    assert attention_work(SHAPE, 5, "with gradients").bytes == moved


@pytest.mark.parametrize(("part", "times"), [("forward", 2), ("with gradients", 5)])
def test_rope_and_norm_move_what_the_kernels_do_not_prepare(part, times):
    (q, k, *_), _ = results_of("forward")
    bare = attention_work(SHAPE, 5, part)
    for fused, moved in ((True, nbytes(k)), (False, nbytes(q, k))):
        work = raw_attention_work(SHAPE, 5, part, fused=fused)
        assert work == (bare.flops, bare.bytes + times * moved)


def test_decode_counts_the_visible_slots_and_the_new_token():
    shape = DecodeShape(3, 16, 8, query_heads=4, kv_heads=2)
    ring = window_cache(
        3, window=16, kv_heads=2, head_width=8, dtype=jnp.bfloat16, new_tokens=1
    )
    assert ring.k_BLKH.shape[1] == 16  # the window: 15 slots before, and the new one's
    q, new = jnp.ones((3, 1, 4, 8), jnp.bfloat16), jnp.ones((3, 1, 2, 8), jnp.bfloat16)
    out, _ = jax.eval_shape(
        lambda *arrays: local_attention_step(*arrays, window=16), q, new, new, ring
    )
    whole_ring = nbytes(ring.k_BLKH, ring.v_BLKH, ring.segment_ids_BL)
    read = nbytes(q, new, new, ring.tokens_B) + whole_ring * 15 // 16
    written = nbytes(out, ring.tokens_B) + whole_ring // 16
    assert decode_work(shape) == Work(2 * 2 * 3 * 4 * 8 * 16, read + written)


def test_the_floor_is_the_larger_time():
    peaks = Peaks(100.0, 10.0)
    assert floor(Work(50.0, 10), peaks) == (1.0, "bytes")
    assert floor(Work(200.0, 10), peaks) == (2.0, "FLOPs")


@pytest.mark.parametrize("window", [1, 2, 64, 65, 66, 128, 200, 1000, None])
def test_block_visits_are_the_pairs_of_blocks_with_a_visible_pair(window):
    shape = Shape(4 * BLOCK, 16, (window,), tokens=4 * BLOCK)
    pairs = visible(shape.row, window)
    seen = {(t // BLOCK, s // BLOCK) for t, s in pairs}
    # A block of queries is visited as its first query sees it: to a whole block back.
    assert len(seen) <= block_visits(shape, window) <= len(seen) + 4


def test_the_grid_is_that_of_the_question():
    sizes = GpuSizes()
    assert {s.row for s in sizes.shapes} == {2048, 8192, 16_384, 65_536}
    assert {s.width for s in sizes.shapes} == {64, 128, 256}
    for shape in sizes.shapes:
        assert shape.batch * shape.row == shape.tokens == 65_536
        assert (shape.query_heads, shape.kv_heads) == (16, 4)
        if shape.width == 128:
            assert shape.windows == (128, 256, 512, 2048, None)
    cases = {(shape.batch, shape.window) for shape in sizes.decodes}
    assert cases == set(itertools.product((1, 16, 128, 512), (128, 2048)))
    for shape, part in itertools.product(sizes.shapes, PARTS):
        assert attention_work(shape, 128, part).bytes > sizes.rotated_bytes


@pytest.mark.parametrize("row", [64, 256, 65_536])
def test_flops_of_the_matrix_memory_are_those_of_the_formula(row):
    shape = MatrixShape(row, 3, 16, 32, tokens=131_072)
    a_token = 3 * (65 * (16 + 32) + 4 * 16 * 32)  # 3 heads, chunks of 64
    assert matrix_work(shape, "exp", "forward").flops == shape.tokens * a_token
    both = matrix_work(shape, "exp", "with gradients").flops
    assert both == 3 * shape.tokens * a_token


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_the_matrix_memory_are_those_of_its_inputs_and_outputs(form):
    shape = MatrixShape(24, 2, 16, 32, tokens=72)
    arrays = matrix_sets(shape, form, seed=0, sets=1)[0]
    *inputs, dh = arrays
    part = "with gradients"
    h, gradients = jax.eval_shape(program(CHUNKED, form, part, Forms()), *arrays)
    moved = nbytes(*inputs, h)
    assert matrix_work(shape, form, "forward").bytes == moved
    divided = nbytes(h) if form != "linear" else 0
    moved += nbytes(*inputs, dh) + divided + nbytes(*gradients)
    assert matrix_work(shape, form, part).bytes == moved


def test_a_step_of_the_matrix_memory_reads_and_writes_all_of_it():
    shape = MatrixStep(3, 2, 16, 32)
    state = initial_state(batch=3, heads=2, key_width=16, value_width=32)
    token = MatrixShape(1, 2, 16, 32, tokens=3)
    *inputs, _ = matrix_sets(token, "exp", seed=0, sets=1)[0]
    h, after = jax.eval_shape(lambda *x: mlstm(*x, state=state), *inputs)
    moved = nbytes(*inputs, h) + nbytes(state[:3]) + nbytes(after[:3])
    assert matrix_step_work(shape) == Work(3 * 2 * 4 * 16 * 32, moved)


def test_the_grid_of_the_matrix_memory_is_that_of_the_question():
    sizes = GpuSizes()
    cases = {(s.row, s.heads, s.key_width, s.value_width) for s in sizes.matrices}
    rows = (512, 2048, 8192, 65_536)
    assert cases == {(row, *heads) for row in rows for heads in HEADS}
    assert all(s.forms == FORMS and s.tokens == 65_536 for s in sizes.matrices)
    steps = {(s.batch, s.heads) for s in sizes.matrix_steps}
    assert steps == set(itertools.product((1, 64, 512), (16, 8)))
