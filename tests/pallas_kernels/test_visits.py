"""The blocks that the kernels visit, against counting every pair."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.local_attention.reference import visible_pairs
from pallas_kernels.local_attention.visits import (
    key_extents,
    query_extents,
    visited_keys,
    visiting_queries,
)

visits_to_keys = jax.jit(visited_keys, static_argnums=3)
# A program for each shape, not one for each of its operations.
extents_of_queries = jax.jit(query_extents, static_argnames=("rows", "group", "offset"))
extents_of_keys = jax.jit(key_extents, static_argnames=("block", "offset"))
visits_to_queries = jax.jit(visiting_queries, static_argnums=3, static_argnames="group")


def pairs(T, S, window, ids, beyond):
    """Returns which key each query reads, as numpy booleans of shape TS.

    Of arrays of one shape, whatever T and S are: their operations are compiled once.
    """

    def longest(ids):
        return np.pad(ids, (0, LONGEST - len(ids)))[None]

    segments = (None, None) if ids is None else (longest(ids[-T:]), longest(ids[-S:]))
    positions = np.arange(LONGEST)[None] + (S - T + beyond), np.arange(LONGEST)[None]
    visible = visible_pairs(*positions, *segments, window=window)
    return np.asarray(visible[0])[:T, :S]


def check_visits(visible_TS, visits, tokens, block, *, group=1):
    """Returns the visited keys; checks that inner blocks are visible as a whole.

    Each key counts as `group` rows of a block.
    """
    S = visible_TS.shape[1]
    first, inner, inner_end, count = (int(number) for number in visits)
    visited = np.zeros((S + block) * group, bool)
    visited[first * group : first * group + count * block] = True
    for j in range(inner, inner_end):
        rows = first * group + np.arange(j * block, (j + 1) * block)
        assert rows[-1] < S * group
        keys = np.unique(rows // group)
        assert visible_TS[np.ix_(tokens, keys)].all(), f"block {j} needs a mask"
    return np.all(visited.reshape(-1, group), axis=-1)[:S]


LONGEST = 90  # tokens
shapes = {
    "T": st.integers(1, LONGEST),
    "S": st.integers(1, LONGEST),
    "window": st.integers(1, 120),
    "block": st.sampled_from([4, 16, 32]),
    "own": st.sampled_from([1, 5, 16]),
    "group": st.sampled_from([1, 3, 4, 40]),
    "segments": st.sampled_from([0, 1, 4]),
    "hidden": st.integers(0, 20),
    "beyond": st.sampled_from([0, 0, 7, 100]),
    "sort": st.booleans(),
    "seed": st.integers(0, 2**16),
}


def segment_ids(T, S, segments, hidden, sort, seed):
    """Returns int32 ids of max(T, S) tokens, the last ones hidden, or None."""
    if not segments:
        return None
    ids = np.random.default_rng(seed).integers(0, segments, max(T, S)).astype(np.int32)
    if sort:
        ids.sort()
    ids[len(ids) - hidden :] = -1
    return ids


@pytest.mark.slow
@given(**shapes)
def test_every_visible_key_is_visited_and_inner_blocks_need_no_mask(
    T, S, window, block, own, group, segments, hidden, beyond, sort, seed
):
    ids = segment_ids(T, S, segments, hidden, sort, seed)
    visible_TS, offset = pairs(T, S, window, ids, beyond), S - T + beyond
    extents = None
    if ids is not None:
        segments = ids[None, -T:], ids[None, -S:]
        rows = {"rows": own, "group": group}
        extents = np.asarray(extents_of_queries(*segments, **rows, offset=offset))[0]
    for i in range(-(-T * group // own)):
        last = (i * own + own - 1) // group
        tokens = np.arange(i * own // group, min(last + 1, T))
        queries = (tokens[0] + offset, tokens[-1] + offset)
        segment = None if extents is None else tuple(extents[i])
        visits = visits_to_keys(queries, window, S, block, segment=segment)
        visited_S = check_visits(visible_TS, visits, tokens, block)
        needed_S = visible_TS[tokens].any(axis=0)
        assert visited_S[needed_S].all()
        if needed_S.any() and (ids is None or (sort and not hidden)):
            # Not a block more than from the first visible key to the last query.
            first = np.flatnonzero(needed_S)[0]
            assert int(visits.first) == first
            last_key = min(queries[1], S - 1)
            assert int(visits.count) == -(-(last_key + 1 - first) // block)


@pytest.mark.slow
@given(**shapes)
def test_every_reading_query_is_visited_and_inner_blocks_need_no_mask(
    T, S, window, block, own, group, segments, hidden, beyond, sort, seed
):
    ids = segment_ids(T, S, segments, hidden, sort, seed)
    visible_TS, offset = pairs(T, S, window, ids, beyond), S - T + beyond
    extents = None
    if ids is not None:
        segments = ids[None, -T:], ids[None, -S:]
        extents = np.asarray(extents_of_keys(*segments, block=own, offset=offset))[0]
    for j in range(-(-S // own)):
        keys = np.arange(j * own, min(j * own + own, S))
        segment = None if extents is None else tuple(extents[j])
        ends = (keys[0], keys[-1])
        visits = visits_to_queries(
            ends, window, (offset, offset + T), block, group=group, segment=segment
        )
        shifted = visits._replace(first=visits.first - offset)
        visited_T = check_visits(visible_TS.T, shifted, keys, block, group=group)
        needed_T = visible_TS[:, keys].any(axis=1)
        assert visited_T[needed_T].all()


@pytest.mark.parametrize(
    ("window", "count", "inner"), [(1, 1, 0), (64, 2, 0), (128, 3, 1), (2048, 33, 31)]
)
def test_the_cost_follows_the_window(window, count, inner):
    visits = visited_keys((4096, 4111), window, 8192, 64)
    assert int(visits.count) == count
    assert int(visits.inner_end - visits.inner) == inner


def test_packed_documents_are_not_visited():
    lengths = [100, 300, 50, 574]
    ids = np.repeat(np.arange(4, dtype=np.int32), lengths)[None]
    extents = np.asarray(query_extents(ids, ids, rows=64, group=4))[0]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    np.testing.assert_array_equal(extents[:, 0], starts[::16])
