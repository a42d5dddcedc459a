"""What the kernels of gated linear attention share: tokens, and weights of decays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.gated_linear_attention.decays import Decays
from pallas_kernels.matrix_memory.blocks import Chunk, Columns, Sizes, load_tokens
from pallas_kernels.matrix_memory.memory import EMPTY

SUB_BLOCK = 16  # tokens; the fewest rows of a product on the tensor cores


class Sums(NamedTuple):
    """The sums of the log decays up to a token, or to each of some (see decays.py)."""

    coarse: Any
    small: Any


def tokens_of(batch, head, number, length: int, sizes: Sizes, chunk: int) -> Chunk:
    """Returns the piece of `length` tokens of a head with this number: a chunk, or a
    part of one."""
    tokens_C = number * length + jnp.arange(length, dtype=jnp.int32)
    existing_C, valid_C = tokens_C, None
    if sizes.T % chunk:
        existing_C, valid_C = jnp.minimum(tokens_C, sizes.T - 1), tokens_C < sizes.T
    return Chunk(batch, head, head, number, tokens_C, existing_C, valid_C)


def load_rows(ref, here: Chunk, columns: Columns) -> jax.Array:
    """Returns the tokens' rows of an array of shape BTNX, zero outside."""
    index = (here.batch, here.existing_C[:, None], here.head, columns.index_X[None, :])
    mask = None if columns.inside_X is None else columns.inside_X[None, :]
    if here.valid_C is not None:
        valid_C1 = here.valid_C[:, None]
        mask = valid_C1 if mask is None else valid_C1 & mask
    return backend.load(ref, index, mask)


def load_row(ref, here: Chunk, token, columns: Columns, mask=None) -> jax.Array:
    """Returns one token's row of an array of shape BTNX, as 1X; zero where the mask is
    false."""
    index = (here.batch, token, here.head, columns.index_X)
    inside_X = columns.inside_X
    if mask is not None:
        mask = jnp.broadcast_to(mask, columns.index_X.shape)
        inside_X = mask if inside_X is None else mask & inside_X
    return backend.load(ref, index, inside_X)[None, :]


def existing(token, sizes: Sizes):
    """Returns the token, or the last one in place of one that does not exist."""
    return jnp.minimum(token, sizes.T - 1)


def load_sums(decays: Decays, here: Chunk, columns: Columns) -> Sums:
    """Returns the sums up to each token; one that does not exist has the last one's, so
    that no exponent is above zero."""
    arrays = (decays.coarse_BTNH, decays.small_BTNH)
    return Sums(*(load_tokens(x_BTNH, here, here.head, columns) for x_BTNH in arrays))


def sums_at(decays: Decays, here: Chunk, token, columns: Columns, sizes: Sizes) -> Sums:
    """Returns the sums up to one token, as 1H."""
    token = existing(token, sizes)
    arrays = (decays.coarse_BTNH, decays.small_BTNH)
    return Sums(*(load_row(x_BTNH, here, token, columns) for x_BTNH in arrays))


def sums_before(
    decays: Decays, here: Chunk, number, columns: Columns, sizes: Sizes, chunk: int
) -> Sums:
    """Returns the sums up to the start of the sub-block with this number, as 1H: zero
    at the start of a chunk."""
    token = number * SUB_BLOCK
    inner = jax.lax.rem(token, jnp.int32(chunk)) > 0
    token = existing(jnp.maximum(token - 1, 0), sizes)
    arrays = (decays.coarse_BTNH, decays.small_BTNH)
    return Sums(*(load_row(x_BTNH, here, token, columns, inner) for x_BTNH in arrays))


def weight(later: Sums, earlier: Sums | None = None, seen=None) -> jax.Array:
    """Returns exp of the sums between; `earlier` None is the chunk's start. Zero where
    `seen` is false."""
    if earlier is None:
        return jnp.exp(later.coarse + later.small)
    exponent = (later.coarse - earlier.coarse) + (later.small - earlier.small)
    return jnp.exp(exponent if seen is None else jnp.where(seen, exponent, EMPTY))


def first_sub_block(number, chunk: int):
    """Returns the number of the first sub-block of the chunk that has this one."""
    per_chunk = chunk // SUB_BLOCK
    return jax.lax.div(number, jnp.int32(per_chunk)) * per_chunk


def tile_index(here: Chunk, first_column, width: int):
    """Returns the index of a block of an array of shape BNT'C, the rows of a piece of
    tokens and `width` columns."""
    columns_X = first_column + jnp.arange(width, dtype=jnp.int32)
    return here.batch, here.head, here.tokens_C[:, None], columns_X[None, :]
