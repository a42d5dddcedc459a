"""What the matrix-memory kernels share: chunks of tokens, blocks of columns, loads."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.matrix_memory.memory import EMPTY, Rules

WIDEST_KEY, WIDEST_VALUE = 256, 512  # columns of a head
WIDEST_FLOAT32 = 128  # columns of a key, where a product takes float32
LARGEST_GRID = 65535  # programs along each axis but the first, CUDA's limit
SUMMANDS = 16  # columns that add up to n: the fewest of a product on the tensor cores


class Sizes(NamedTuple):
    """What a kernel knows at compile time, beside its tiles."""

    B: int
    T: int
    K: int
    N: int
    H: int
    P: int
    rules: Rules
    interpret: bool = False

    @property
    def key_width(self) -> int:
        """H, rounded up to a power of two that a product on the tensor cores takes."""
        return max(16, pl.next_power_of_2(self.H))

    @property
    def value_width(self) -> int:
        """P, rounded up likewise."""
        return max(16, pl.next_power_of_2(self.P))


def refuse(sizes: Sizes, dtype: jax.typing.DTypeLike, /, *, products: bool) -> None:
    """Returns nothing; `products`: the kernels multiply on the tensor cores.

    Raises:
      NotImplementedError: a call that the kernels do not serve.
    """
    backend.refuse_without_gpu()
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(
            f"serves bfloat16, float16 and float32; got {jnp.dtype(dtype).name}."
        )
    wide = products and dtype != jnp.bfloat16
    widest = WIDEST_FLOAT32 if wide else WIDEST_KEY
    if widest < sizes.H or sizes.P > WIDEST_VALUE:
        raise NotImplementedError(
            f"serves keys up to {widest} and values up to {WIDEST_VALUE} wide in "
            f"{jnp.dtype(dtype).name}; got {sizes.H} and {sizes.P}."
        )
    if max(sizes.B, sizes.N) > LARGEST_GRID:
        raise NotImplementedError(
            f"serves up to {LARGEST_GRID} rows of a batch and heads; got {sizes.B} and "
            f"{sizes.N}."
        )


class Tokens(NamedTuple):
    """The arrays of a call that have columns."""

    q_BTKH: Any
    k_BTKH: Any
    v_BTNP: Any


class Weights(NamedTuple):
    """The gates of every chunk as the kernels read them (see gates.py): `row`, `column`
    and `coarse` are logarithms, the others weights; T' tokens are J whole chunks."""

    row_BNT: Any
    column_BNT: Any
    coarse_BNT: Any
    old_BNT: Any
    write_BNT: Any
    keep_BNJ: Any
    runs_BT: Any  # int32 or None


class Chunk(NamedTuple):
    """The C tokens of a chunk of one head."""

    batch: Any
    head: Any
    key_head: Any  # of the head's queries and keys
    number: Any
    tokens_C: jax.Array
    existing_C: jax.Array  # the last token in place of those that do not exist
    valid_C: jax.Array | None  # None where all exist


class Columns(NamedTuple):
    """A block of the columns of a head's keys or values."""

    index_X: jax.Array
    inside_X: jax.Array | None  # None where all exist


def chunk_of(batch, head, number, sizes: Sizes, chunk: int) -> Chunk:
    """Returns the chunk of a head with this number.

    A token that does not exist is read as the last one: its weights are zero.
    """
    tokens_C = number * chunk + jnp.arange(chunk, dtype=jnp.int32)
    key_head = jax.lax.div(head, jnp.int32(sizes.N // sizes.K))
    existing_C, valid_C = tokens_C, None
    if sizes.T % chunk:
        existing_C, valid_C = jnp.minimum(tokens_C, sizes.T - 1), tokens_C < sizes.T
    return Chunk(batch, head, key_head, number, tokens_C, existing_C, valid_C)


def columns_of(first, block: int, width: int) -> Columns:
    """Returns `block` columns from `first` on, of a head that has `width`."""
    index_X = first + jnp.arange(block, dtype=jnp.int32)
    return Columns(index_X, index_X < width if width % block else None)


def load_tokens(ref, chunk: Chunk, head, columns: Columns) -> jax.Array:
    """Returns the chunk of an array of shape BTNX, tokens by columns."""
    index = (chunk.batch, chunk.existing_C[:, None], head, columns.index_X[None, :])
    return backend.load(ref, index, _both(None, columns.inside_X))


def load_tokens_transposed(ref, chunk: Chunk, head, columns: Columns) -> jax.Array:
    """Returns the chunk of an array of shape BTNX, columns by tokens."""
    index = (chunk.batch, chunk.existing_C[None, :], head, columns.index_X[:, None])
    return backend.load(ref, index, _both(columns.inside_X, None))


def store_tokens(ref, chunk: Chunk, columns: Columns, values_CX) -> None:
    """Returns nothing; writes the chunk of an array of shape BTNX."""
    index = (chunk.batch, chunk.tokens_C[:, None], chunk.head, columns.index_X[None, :])
    backend.store(ref, index, values_CX, _both(chunk.valid_C, columns.inside_X))


def load_scalars(ref, chunk: Chunk) -> jax.Array:
    """Returns the chunk of an array of shape BNT', one number for each token."""
    return backend.load(ref, (chunk.batch, chunk.head, chunk.tokens_C))


def store_scalars(ref, chunk: Chunk, values_C, mask=None) -> None:
    """Returns nothing; writes the chunk of an array of shape BNT'."""
    backend.store(ref, (chunk.batch, chunk.head, chunk.tokens_C), values_C, mask)


def load_matrix(ref, place, rows: Columns, columns: Columns) -> jax.Array:
    """Returns a block of the matrix that stands at `place`, a full index of all but the
    last two dimensions, zero outside."""
    index = (*place, rows.index_X[:, None], columns.index_X[None, :])
    return backend.load(ref, index, _both(rows.inside_X, columns.inside_X))


def load_matrix_transposed(ref, place, rows: Columns, columns: Columns) -> jax.Array:
    """Returns `load_matrix` transposed, columns by rows."""
    index = (*place, rows.index_X[None, :], columns.index_X[:, None])
    return backend.load(ref, index, _both(columns.inside_X, rows.inside_X))


def store_matrix(ref, place, rows: Columns, columns: Columns, values, mask=None):
    """Returns nothing; writes a block of the matrix that stands at `place`."""
    index = (*place, rows.index_X[:, None], columns.index_X[None, :])
    inside = _both(rows.inside_X, columns.inside_X)
    if mask is not None:
        inside = mask if inside is None else inside & mask
    backend.store(ref, index, values, inside)


def load_vector(ref, place, columns: Columns) -> jax.Array:
    """Returns a block of the vector that stands at `place`, zero outside."""
    return backend.load(ref, (*place, columns.index_X), columns.inside_X)


def store_vector(ref, place, columns: Columns, values, mask=None) -> None:
    """Returns nothing; writes a block of the vector that stands at `place`."""
    inside = columns.inside_X
    if mask is not None:
        inside = mask if inside is None else inside & mask
    backend.store(ref, (*place, columns.index_X), values, inside)


def after(state, keep, keys_CH, values_CP, weights_C, sums_C, *, precise: bool):
    """Returns a block of the state (C, n) after the keys and values of a chunk were
    written with these weights; n stays where `sums_C` is None."""
    c_HP, n_H = state
    weighted_CP = values_CP.astype(jnp.float32) * weights_C[:, None]
    weighted_CP = weighted_CP.astype(keys_CH.dtype)
    c_HP = keep * c_HP + backend.transposed_dot(keys_CH, weighted_CP, precise=precise)
    if sums_C is not None:
        sums_CZ = _summands(sums_C).astype(keys_CH.dtype)
        sums_HZ = backend.transposed_dot(keys_CH, sums_CZ, precise=precise)
        n_H = keep * n_H + jnp.sum(sums_HZ, axis=1)
    return c_HP, n_H


def times_vector(x_CH: jax.Array, vector_H: jax.Array, *, precise: bool) -> jax.Array:
    """Returns x @ vector, the vector in full float32, on the tensor cores."""
    vector_HZ = _summands(vector_H).astype(x_CH.dtype)
    return jnp.sum(backend.dot(x_CH, vector_HZ, precise=precise), axis=1)


def _summands(x_X: jax.Array) -> jax.Array:
    """Returns a matrix whose columns add up to x: three numbers of bfloat16's eight
    bits each, and zeros. So a product with x is one with them, in any dtype."""
    column_1Z = jnp.arange(SUMMANDS, dtype=jnp.int32)[None, :]
    summands_XZ = jnp.zeros((len(x_X), SUMMANDS), jnp.float32)
    for column in range(3):
        bits_X = jax.lax.bitcast_convert_type(x_X, jnp.int32) & jnp.int32(-(2**16))
        upper_X = jax.lax.bitcast_convert_type(bits_X, jnp.float32)
        summands_XZ = jnp.where(column_1Z == column, upper_X[:, None], summands_XZ)
        x_X = x_X - upper_X
    return summands_XZ


def within(weights: Weights, chunk: Chunk, *, transposed: bool) -> jax.Array:
    """Returns the weight of token s in the output at token t, by t and s (`transposed`:
    by s and t), zero where nothing passes."""
    t, s = (slice(None), None), (None, slice(None))
    if transposed:
        t, s = s, t
    row_C = load_scalars(weights.row_BNT, chunk)
    column_C = load_scalars(weights.column_BNT, chunk)
    coarse_C = load_scalars(weights.coarse_BNT, chunk)
    seen_CC = chunk.tokens_C[t] >= chunk.tokens_C[s]
    if weights.runs_BT is not None:
        runs_C = backend.load(weights.runs_BT, (chunk.batch, chunk.tokens_C))
        seen_CC &= runs_C[t] == runs_C[s]
    within_CC = (coarse_C[t] - coarse_C[s]) + (row_C[t] + column_C[s])
    return jnp.exp(jnp.where(seen_CC, within_CC, EMPTY))


def _both(valid_X, inside_Y):
    """Returns a mask of shape XY, or None where nothing is masked."""
    if valid_X is None:
        return None if inside_Y is None else inside_Y[None, :]
    return (
        valid_X[:, None] if inside_Y is None else valid_X[:, None] & inside_Y[None, :]
    )
