"""FlexAttention is told the blocks of our window, and computes the same."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kernel_speed.gpu import flex
from experiments.kernel_speed.gpu.accuracy import largest_relative_difference
from experiments.kernel_speed.gpu.programs import (
    Forms,
    ProgramKey,
    attention_operation,
    attention_program,
    input_sets,
)
from experiments.kernel_speed.gpu.sizes import CHUNKED, Shape
from experiments.kernel_speed.peer import PeerMissing

SHAPE = Shape(256, 16, (9, 130, None), tokens=512, query_heads=4, kv_heads=2)


@pytest.mark.parametrize("window", [1, 2, 7, 8, 9, 15, 16, 17, 40, None])
def test_block_lists_are_those_of_the_pairs(window):
    lists = flex.block_lists(40, window, block=8)
    t, s = np.indices((40, 40))
    pairs = (t >= s) & (t - s < (window or 40))
    blocks = pairs.reshape(5, 8, 5, 8).transpose(0, 2, 1, 3).reshape(5, 5, 64)
    whole, part = blocks.all(axis=-1), blocks.any(axis=-1) & ~blocks.all(axis=-1)
    found = zip(lists[::2], lists[1::2], (part, whole), strict=True)
    for counts, indices, wanted in found:
        for count, index, row in zip(counts, indices, wanted, strict=True):
            assert index[:count].tolist() == np.flatnonzero(row).tolist()


def test_a_ragged_row_is_refused():
    with pytest.raises(ValueError, match="multiple of 128 tokens; got 200"):
        flex.block_lists(200, 9)


def test_a_missing_torch_is_said_plainly(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(PeerMissing, match="not installed: torch"):
        flex.FlexAttention(input_sets(SHAPE, seed=0), SHAPE)


@pytest.mark.parametrize("window", SHAPE.windows)
def test_flex_attention_reads_the_same_window(window):
    pytest.importorskip("torch")
    sets = input_sets(SHAPE, seed=0)
    theirs = flex.FlexAttention(sets, SHAPE).contender(window, "forward")
    operation = attention_operation(CHUNKED, Forms())
    program = attention_program(operation, ProgramKey(CHUNKED, "any", "forward"))
    for i, arrays in enumerate(sets):
        ours = jax.jit(program)(jnp.int32(window or SHAPE.row), *arrays)
        assert largest_relative_difference(theirs.arrays(theirs.launch(i)), ours) < 0.02
