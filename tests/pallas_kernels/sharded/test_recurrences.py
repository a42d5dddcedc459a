"""A recurrence over shards of a sequence equals the recurrence on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pallas_kernels.sharded.recurrences import (
    RECURRENCES,
    numbers,
    one_device,
    over_shards,
    value_and_gradients,
)
from tests.tolerances import assert_near

SLOW = pytest.mark.slow
T = 24


def check_equal(name, a, ids, start, /, **mesh):
    """Returns nothing; values, last state and gradients are those of one device."""
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, "float64"), a)
        wanted = value_and_gradients(one_device(name), exact, ids, start)
        found = value_and_gradients(over_shards(name, **mesh), exact, ids, start)
        assert_near(found, wanted, dtype="float64")


def row(*lengths):
    """Returns ids of segments of these lengths, numbered from 0."""
    return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)


SHARDS = [pytest.param(shards, marks=SLOW) for shards in (2, 4, 8)]


@pytest.mark.parametrize("shards", [3, *SHARDS])
@pytest.mark.parametrize("name", RECURRENCES)
def test_packed_segments_and_a_state_are_exact(name, shards):
    border = T // shards

    @settings(max_examples=4)
    @given(
        seed=st.integers(0, 2**16),
        cuts=st.lists(st.sampled_from(range(1, T)), max_size=5, unique=True),
        start=st.lists(st.integers(0, 1), min_size=3, max_size=3),
    )
    def check(seed, cuts, start):
        cut_row = row(*np.diff([0, *sorted(cuts), T]))
        # The others: one segment, and one that ends with the first shard.
        ids = np.stack([cut_row, row(T), row(border, T - border)])
        start = np.array(start, np.int32)
        check_equal(name, numbers(name, seed), ids, start, context=shards)

    check()


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        (name, pytest.param(shards, marks=[SLOW] * ((name, shards) != ("mlstm", 3))))
        for name in RECURRENCES
        for shards in (1, 3, 8)
    ],
)
def test_one_document_from_an_empty_memory_is_exact(name, shards):
    a = numbers(name, shards, B=1, T=T) | {"state": None}
    check_equal(name, a, None, None, context=shards)
