"""The ramp of the batch: its stages, and the address of every step's rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.training.batch_schedule import (
    BatchConfig,
    accumulation_at,
    row_offset,
    rows_at,
)


def test_rows_double_at_equal_intervals():
    config = BatchConfig(rows=32, ramp_from=4, ramp_fraction=0.3)
    rows = [rows_at(config, step=step, steps=100) for step in range(100)]
    assert rows == [4] * 10 + [8] * 10 + [16] * 10 + [32] * 70
    assert config.stages == (4, 8, 16, 32)


def test_without_a_ramp_every_step_has_the_rows():
    config = BatchConfig(rows=6, accumulation=3)
    assert config.stages == (6,)
    for step in (0, 5, 99, 1000):
        assert rows_at(config, step=step, steps=100) == 6
        assert row_offset(config, step=step, steps=100) == 6 * step


@given(
    first=st.integers(1, 5),
    doublings=st.integers(0, 5),
    fraction=st.integers(0, 20).map(lambda twentieths: twentieths / 20),
    steps=st.integers(1, 60),
)
def test_the_offset_is_the_sum_of_the_rows_before(first, doublings, fraction, steps):
    rows = first * 2**doublings
    config = BatchConfig(rows=rows, ramp_from=first, ramp_fraction=fraction)
    total = 0
    for step in range(steps + 5):
        assert row_offset(config, step=step, steps=steps) == total
        number = rows_at(config, step=step, steps=steps)
        assert number in config.stages
        total += number
    assert number == rows


@given(
    micro=st.integers(1, 6),
    pieces=st.integers(1, 12),
    doublings=st.integers(0, 4),
)
def test_microbatches_of_the_ramp_are_none_larger(micro, pieces, doublings):
    rows = micro * pieces * 2**doublings
    config = BatchConfig(
        rows=rows, accumulation=pieces * 2**doublings, ramp_from=micro * pieces
    )
    for stage in config.stages:
        accumulation = accumulation_at(config, rows=stage)
        assert stage % accumulation == 0
        assert stage // accumulation <= micro
    assert accumulation_at(config, rows=rows) == config.accumulation


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 12, "ramp_from": 5}, "ramp_from times a power of two, got rows=12"),
        ({"rows": 12, "ramp_from": 24}, "ramp_from times a power of two"),
        ({"ramp_from": 0}, r"ramp_from must be an integer >= 1, got 0"),
        ({"ramp_fraction": 1.5}, "ramp_fraction must be a number from 0 to 1"),
        ({"rows": 9, "accumulation": 2}, "rows must be a multiple of accumulation"),
    ],
)
def test_batches_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        BatchConfig(**changes)
