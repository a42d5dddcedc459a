"""Which blocks a kernel's program visits, and in which of them every pair is visible.

Positions count key tokens: query t stands at the position offset + t, where the offset
is S - T unless it is given. A program visits
blocks of tokens from `first` on. Of its `count` blocks, those from `inner` to
`inner_end` are visible as a whole and need no mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.backend import cdiv

FAR = 2**30  # tokens; beyond every position


class Visits(NamedTuple):
    """Traced int32 scalars: a position, and three numbers of blocks."""

    first: jax.Array
    inner: jax.Array
    inner_end: jax.Array
    count: jax.Array


def visited_keys(queries, window, length, block, *, segment=None) -> Visits:
    """Returns the blocks of `block` keys that a block of queries reads.

    `queries` are the positions of its first and last query, both inclusive; `length` is
    S. `segment`, if given, is the row of `query_extents` of the block.
    """
    start, end = queries
    lowest, uniform = (0, 0) if segment is None else segment
    first = jnp.maximum(start - window + 1, lowest)
    whole = jnp.maximum(end - window + 1, uniform)
    last, seen_by_all = jnp.minimum(end + 1, length), jnp.minimum(start + 1, length)
    return _visits(first, last, (whole, seen_by_all), block)


def visiting_queries(keys, window, queries, rows, *, group, segment=None) -> Visits:
    """Returns the blocks of `rows` rows that read from a block of keys.

    A query has `group` rows, one for each of its heads; the blocks begin with the
    position `first`. `keys` are the positions of the block's first and last key,
    `queries` those of the first query of all and one past the last. `segment` is the
    row of `key_extents`.
    """
    start, end = keys
    highest, uniform = (FAR, FAR) if segment is None else segment
    first = jnp.maximum(start, queries[0])
    last = jnp.minimum(jnp.minimum(end + window, queries[1]), highest)
    whole = jnp.minimum(jnp.minimum(start + window, queries[1]), uniform)
    return _visits(first, last, (end, whole), rows, group)


def _visits(first, last, whole, block, group=1):
    """Returns the visits of [first, last) whose wholly visible part is `whole`; of each
    position, `group` rows count towards a block."""

    def rows_before(position):
        return jnp.maximum(position - first, 0) * group

    count = cdiv(rows_before(last), block)
    inner = jnp.minimum(cdiv(rows_before(whole[0]), block), count)
    complete = jax.lax.div(rows_before(whole[1]), jnp.int32(block))
    return Visits(first, inner, jnp.clip(complete, inner, count), count)


def query_extents(
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    /,
    *,
    rows: int,
    group: int,
    offset: int | None = None,
) -> jax.Array:
    """Returns int32 of shape (B, I, 2): per block of `rows` rows, `group` to a query,
    the position from which on it may read, and that from which on its keys are all of
    its one segment (FAR where it has several).

    Exact where segment ids never decrease, but for negative ones, which nothing reads;
    elsewhere some blocks without a visible pair are visited too.
    """
    S, T = key_segments_BS.shape[1], query_segments_BT.shape[1]
    offset = S - T if offset is None else offset
    # No key before the first one that reaches the queries' smallest id can match.
    reached_BS = jax.lax.cummax(key_segments_BS, axis=1)
    starts_I = jnp.arange(0, T * group, rows, dtype=jnp.int32)
    ends_I = jnp.minimum((starts_I + (rows - 1)) // group, T - 1)
    most = (rows + group - 2) // group + 1
    smallest_BI, _, one_BI = _ids(query_segments_BT, starts_I // group, ends_I, most)
    lowest_BI = _search(reached_BS, smallest_BI, side="left")
    last_I = jnp.clip(ends_I + offset, 0, S - 1)
    one_BI &= key_segments_BS[:, last_I] == smallest_BI
    run_BI = jnp.where(one_BI, _run_starts(key_segments_BS)[:, last_I], FAR)
    return jnp.stack([lowest_BI, run_BI], axis=-1)


def key_extents(
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    /,
    *,
    block: int,
    offset: int | None = None,
) -> jax.Array:
    """Returns int32 of shape (B, J, 2): per block of `block` keys, the position before
    which the queries that may read it stand, and that before which they are all of its
    one segment (0 where it has several). See `query_extents`."""
    S, T = key_segments_BS.shape[1], query_segments_BT.shape[1]
    offset = S - T if offset is None else offset
    # No query after the last one that undercuts the keys' largest id can match.
    wanted_BT = jnp.where(query_segments_BT < 0, FAR, query_segments_BT)
    undercut_BT = jax.lax.cummin(wanted_BT, axis=1, reverse=True)
    starts_J = jnp.arange(0, S, block, dtype=jnp.int32)
    ends_J = jnp.minimum(starts_J + (block - 1), S - 1)
    smallest_BJ, largest_BJ, one_BJ = _ids(key_segments_BS, starts_J, ends_J, block)
    highest_BJ = _search(undercut_BT, largest_BJ, side="right") + offset
    last_J = jnp.maximum(ends_J - offset, 0)
    one_BJ &= query_segments_BT[:, last_J] == smallest_BJ
    run_BJ = jnp.where(one_BJ, _run_ends(query_segments_BT)[:, last_J] + offset, 0)
    return jnp.stack([highest_BJ, run_BJ], axis=-1)


def _ids(segments_BT, starts_I, ends_I, most):
    """Returns three arrays of shape BI: over the tokens from each start to each end,
    `most` or fewer, the smallest and the largest id that is not negative (FAR and -1
    where there is none), and whether all ids are one, not negative."""
    tokens_IC = starts_I[:, None] + jnp.arange(most, dtype=jnp.int32)[None]
    segments_BIC = segments_BT[:, jnp.minimum(tokens_IC, ends_I[:, None])]
    hidden_BIC = segments_BIC < 0
    smallest_BI = jnp.min(jnp.where(hidden_BIC, FAR, segments_BIC), axis=-1)
    largest_BI = jnp.max(segments_BIC, axis=-1)
    one_BI = (smallest_BI == largest_BI) & ~jnp.any(hidden_BIC, axis=-1)
    return smallest_BI, jnp.maximum(largest_BI, -1), one_BI


def _search(sorted_BT, ids_BI, *, side):
    """Returns where each id belongs in the sorted row, as int32 of shape BI."""
    search = jax.vmap(lambda row_T, ids_I: jnp.searchsorted(row_T, ids_I, side=side))
    return search(sorted_BT, ids_BI).astype(jnp.int32)


def _run_starts(segments_BS):
    """Returns the first position of the run of equal ids that each position is in."""
    positions_S = jnp.arange(segments_BS.shape[1], dtype=jnp.int32)
    new_BS = segments_BS != jnp.roll(segments_BS, 1, axis=1)
    return jax.lax.cummax(jnp.where(new_BS, positions_S[None], 0), axis=1)


def _run_ends(segments_BT):
    """Returns the position behind the run of equal ids that each position is in."""
    T = segments_BT.shape[1]
    positions_T = jnp.arange(T, dtype=jnp.int32)
    last_BT = (segments_BT != jnp.roll(segments_BT, -1, axis=1)) | (
        positions_T == T - 1
    )[None]
    ends_BT = jnp.where(last_BT, positions_T[None] + 1, T)
    return jax.lax.cummin(ends_BT, axis=1, reverse=True)
