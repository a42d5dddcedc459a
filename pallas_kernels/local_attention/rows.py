"""What the window-attention kernels share: rows of queries, blocks of keys, logits.

The G query heads that read one key/value head stand behind each other as rows of one
matmul: R rows are R / G tokens, so that a group's keys are read once, and few keys are
visited in vain. Logits are in base 2.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.local_attention.tiles import Tile
from pallas_kernels.local_attention.visits import visited_keys

LOG2_E = math.log2(math.e)
MASKED = -1e30  # a logit that weighs nothing
FLOOR = -1e20  # below every real logit, far above MASKED
WIDEST_IN_REGISTERS = 64  # columns of a head in full float32
NOWHERE = -(2**30)  # the position of a row that is no query: it sees no key


class Sizes(NamedTuple):
    """What a kernel knows at compile time, beside its tiles."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    softcap: float | None
    precise: bool  # float32 products in full, not in TF32
    interpret: bool = False
    beyond: int = 0  # tokens that the queries stand further behind than the keys' end
    parts: int = 1  # of columns: 2 halves where the kernel prepares the queries
    eps: float = 0.0  # of the norm of queries

    @property
    def G(self) -> int:
        """Query heads that read one key/value head."""
        return self.N // self.K

    @property
    def offset(self) -> int:
        """Position of the first query among the keys."""
        return self.S - self.T + self.beyond

    @property
    def width(self) -> int:
        """H, rounded up to a power of two that a product on the tensor cores takes."""
        return max(16, pl.next_power_of_2(self.H))

    @property
    def pieces(self) -> int:
        """Into how many pieces a head's columns are cut where a product is over them.

        In full float32 there are no tensor cores: the operands stand in registers, and
        those of wide heads overflow them.
        """
        return max(1, self.width // WIDEST_IN_REGISTERS) if self.precise else 1


class Inputs(NamedTuple):
    """The arrays of a call, or their refs in a kernel."""

    window_1: Any  # int32, at most T + S + beyond
    q_BTNH: Any
    k_BSKH: Any
    v_BSKH: Any
    sinks_N: Any  # float32 or None
    query_segments_BT: Any  # int32 or None, both or neither
    key_segments_BS: Any
    turns: Any = None  # what prepares queries: cos_BTF, sin_BTF, scale_H or None


class Rows(NamedTuple):
    """R queries of one key/value head: its group's heads at consecutive tokens."""

    batch: jax.Array
    tokens_R: jax.Array
    heads_R: jax.Array
    valid_R: jax.Array  # false where the row is no query
    positions_R: jax.Array


class Keys(NamedTuple):
    """C consecutive keys of one key/value head; `valid_C` is None where all exist."""

    batch: jax.Array
    positions_C: jax.Array
    head: jax.Array
    valid_C: jax.Array | None


Piece = tuple[int, int]  # its number, and into how many a head's columns are cut
WHOLE: Piece = (0, 1)


def query_rows(batch, first, kv_head, sizes: Sizes, rows: int) -> Rows:
    """Returns the rows from number `first` on of a key/value head: row r is the head
    r mod G of the group, at the token r div G."""
    row_R = first + jnp.arange(rows, dtype=jnp.int32)
    tokens_R = jax.lax.div(row_R, jnp.int32(sizes.G))
    heads_R = kv_head * sizes.G + row_R - tokens_R * sizes.G
    valid_R = tokens_R < sizes.T
    positions_R = jnp.where(valid_R, tokens_R + sizes.offset, NOWHERE)
    return Rows(batch, tokens_R, heads_R, valid_R, positions_R)


def query_visits(inputs: Inputs, extents_BI2, sizes: Sizes, tile: Tile):
    """Returns this program's queries, its key/value head and its visits to keys."""
    block, kv_head, batch = (pl.program_id(axis) for axis in range(3))
    # The last queries see the most keys, and go first: no program is left over alone.
    block = pl.cdiv(sizes.T * sizes.G, tile.rows) - 1 - block
    first_row = block * tile.rows
    rows = query_rows(batch, first_row, kv_head, sizes, tile.rows)
    first = jax.lax.div(first_row, jnp.int32(sizes.G))
    last = jax.lax.div(first_row + (tile.rows - 1), jnp.int32(sizes.G))
    last = jnp.minimum(last, sizes.T - 1)
    segment = None
    if extents_BI2 is not None:
        index = (batch, block)
        segment = [backend.load(extents_BI2, (*index, end)) for end in (0, 1)]
    visits = visited_keys(
        (first + sizes.offset, last + sizes.offset),
        inputs.window_1[0],
        sizes.S,
        tile.keys,
        segment=segment,
    )
    return rows, kv_head, visits


def key_block(batch, first, kv_head, sizes: Sizes, keys: int, *, ragged: bool) -> Keys:
    """Returns the keys from position `first` on; `ragged`: some may not exist."""
    positions_C = first + jnp.arange(keys, dtype=jnp.int32)
    return Keys(batch, positions_C, kv_head, positions_C < sizes.S if ragged else None)


def load_rows(ref, rows: Rows, sizes: Sizes, piece: Piece = WHOLE) -> jax.Array:
    """Returns the rows of an array of shape BTNH, zero where there is no query."""
    columns_1H, inside_1H = columns(sizes, piece)
    index = (rows.batch, rows.tokens_R[:, None], rows.heads_R[:, None], columns_1H)
    return backend.load(ref, index, both(rows.valid_R, inside_1H))


def store_rows(ref, rows: Rows, values_RH, sizes: Sizes, piece: Piece = WHOLE) -> None:
    """Returns nothing; writes rows of an array of shape BTNH."""
    columns_1H, inside_1H = columns(sizes, piece)
    index = (rows.batch, rows.tokens_R[:, None], rows.heads_R[:, None], columns_1H)
    backend.store(ref, index, values_RH, both(rows.valid_R, inside_1H))


def load_keys(ref, keys: Keys, sizes: Sizes, piece: Piece = WHOLE) -> jax.Array:
    """Returns a block of an array of shape BSKH, zero where there is no key."""
    columns_1H, inside_1H = columns(sizes, piece)
    index = (keys.batch, keys.positions_C[:, None], keys.head, columns_1H)
    return backend.load(ref, index, both(keys.valid_C, inside_1H))


def store_keys(ref, keys: Keys, values_CH, sizes: Sizes) -> None:
    """Returns nothing; writes a block of an array of shape BSKH."""
    columns_1H, inside_1H = columns(sizes)
    index = (keys.batch, keys.positions_C[:, None], keys.head, columns_1H)
    backend.store(ref, index, values_CH, both(keys.valid_C, inside_1H))


def load_statistic(ref, rows: Rows, fill: float) -> jax.Array:
    """Returns an array of shape BTN at the rows, `fill` where there is no query."""
    index = (rows.batch, rows.tokens_R, rows.heads_R)
    return backend.load(ref, index, rows.valid_R, fill)


def store_statistic(ref, rows: Rows, values_R) -> None:
    """Returns nothing; writes the rows of an array of shape BTN."""
    index = (rows.batch, rows.tokens_R, rows.heads_R)
    backend.store(ref, index, values_R, rows.valid_R)


def columns(sizes: Sizes, piece: Piece = WHOLE):
    """Returns the columns of a head's piece, and which are its own (None: all)."""
    number, pieces = piece
    own = pl.cdiv(sizes.H, pieces)
    width = max(16, pl.next_power_of_2(own))
    column_1H = jnp.arange(width, dtype=jnp.int32)[None, :]
    columns_1H = number * own + column_1H
    if width * pieces == sizes.H:
        return columns_1H, None
    return columns_1H, (column_1H < own) & (columns_1H < sizes.H)


def both(valid_R: jax.Array | None, inside_1H: jax.Array | None) -> jax.Array | None:
    """Returns a mask of shape RH, or None where nothing is masked."""
    if valid_R is None:
        return inside_1H
    return valid_R[:, None] if inside_1H is None else valid_R[:, None] & inside_1H


def products(x, rows: Rows, y, keys: Keys, sizes: Sizes) -> jax.Array:
    """Returns x . y of rows of a ref of shape BTNH and keys of one of shape BSKH, read
    and multiplied piece by piece."""
    products_RC = jnp.zeros((len(rows.tokens_R), len(keys.positions_C)), jnp.float32)
    for number in range(sizes.pieces):
        piece = (number, sizes.pieces)
        x_RH, y_CH = load_rows(x, rows, sizes, piece), load_keys(y, keys, sizes, piece)
        products_RC += backend.dot_transposed(x_RH, y_CH, precise=sizes.precise)
    return products_RC


def logits(x_RH, y_CH, sizes: Sizes) -> jax.Array:
    """Returns the scaled and capped x . y in base 2; queries by keys, or transposed."""
    return scaled(backend.dot_transposed(x_RH, y_CH, precise=sizes.precise), sizes)


def scaled(products_RC, sizes: Sizes) -> jax.Array:
    """Returns the logits, base 2, of products q . k: scaled and capped."""
    scale = sizes.H**-0.5
    if sizes.softcap is None:
        return products_RC * (scale * LOG2_E)
    capped_RC = jnp.tanh(products_RC * (scale / sizes.softcap))
    return capped_RC * (sizes.softcap * LOG2_E)


def slope(logits_RC, sizes: Sizes) -> jax.Array | float:
    """Returns d (natural logit) / d (scaled q . k), from the logit in base 2."""
    if sizes.softcap is None:
        return 1.0
    tanh_RC = logits_RC * (1.0 / (sizes.softcap * LOG2_E))
    return 1.0 - tanh_RC * tanh_RC


def mask(logits_RC, inputs: Inputs, rows: Rows, keys: Keys, *, transposed: bool):
    """Returns the logits, MASKED where the query does not read the key."""
    query, key = (slice(None), None), (None, slice(None))
    if transposed:
        query, key = key, query
    distance_RC = rows.positions_R[query] - keys.positions_C[key]
    visible_RC = (distance_RC >= 0) & (distance_RC < inputs.window_1[0])
    if keys.valid_C is not None:
        visible_RC &= keys.valid_C[key]
    if inputs.query_segments_BT is not None:
        index = (rows.batch, rows.tokens_R)
        own_R = backend.load(inputs.query_segments_BT, index, rows.valid_R, -1)
        index = (keys.batch, keys.positions_C)
        ids_C = backend.load(inputs.key_segments_BS, index, keys.valid_C, -1)
        visible_RC &= (own_R[query] == ids_C[key]) & (ids_C >= 0)[key]
    return jnp.where(visible_RC, logits_RC, MASKED)


def unread(sinks_R, rows: int, sizes: Sizes) -> tuple[jax.Array, ...]:
    """Returns the running softmax (peak_R, total_R, sum_RH) before the first key.

    `sinks_R` joins it as a logit without a value; None: nothing does.
    """
    peak_R = jnp.full((rows,), FLOOR, jnp.float32)
    total_R = jnp.zeros((rows,), jnp.float32)
    if sinks_R is not None:
        peak_R = jnp.maximum(peak_R, LOG2_E * sinks_R)
        total_R = jnp.where(peak_R > FLOOR, 1.0, total_R)
    return peak_R, total_R, jnp.zeros((rows, sizes.width), jnp.float32)


def read(softmax, logits_RC, v_CH, sizes: Sizes) -> tuple[jax.Array, ...]:
    """Returns the running softmax after a block of keys."""
    peak_R, total_R, sum_RH = softmax
    new_peak_R = jnp.maximum(peak_R, jnp.max(logits_RC, axis=1))
    weights_RC = jnp.exp2(logits_RC - new_peak_R[:, None])
    rescale_R = jnp.exp2(peak_R - new_peak_R)
    read_RH = backend.dot(weights_RC.astype(v_CH.dtype), v_CH, precise=sizes.precise)
    total_R = total_R * rescale_R + jnp.sum(weights_RC, axis=1)
    return new_peak_R, total_R, sum_RH * rescale_R[:, None] + read_RH


def finished(softmax) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the log-sum-exp, base 2; zeros and FLOOR of no keys."""
    peak_R, total_R, sum_RH = softmax
    total_R = jnp.where(total_R > 0, total_R, 1.0)
    return sum_RH / total_R[:, None], peak_R + jnp.log2(total_R)


def phases(visits, body, carry):
    """Returns the carry after `body(j, carry, edge=)` over all blocks of the visits."""

    def over(start, end, carry, *, edge):
        step = lambda j, carry: body(j, carry, edge=edge)  # noqa: E731
        return jax.lax.fori_loop(start, end, step, carry)

    carry = over(0, visits.inner, carry, edge=True)
    carry = over(visits.inner, visits.inner_end, carry, edge=False)
    return over(visits.inner_end, visits.count, carry, edge=True)
