"""Products of a chunk's tokens with its memory and with each other, as Pallas kernels
for GPUs: what is read of the memory, and what arrives at its readers and writers.

A program owns a chunk of one head and a block of the columns of the result.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.gated_linear_attention import blocks
from pallas_kernels.gated_linear_attention.tiles import Tile
from pallas_kernels.matrix_memory.blocks import (
    Sizes,
    columns_of,
    load_matrix,
    load_matrix_transposed,
    store_tokens,
)


class Local(NamedTuple):
    """A product within the chunk that is added: scores @ values, or scores.T."""

    scores_BNTC: Any
    values_BTNP: Any


def read(
    rows_BTNX,
    s_BNJHP,
    local: Local | None,
    sizes: Sizes,
    tile: Tile,
    chunk: int,
    *,
    transposed: bool = False,
):
    """Returns rows @ S of every chunk, BTNP in the dtype of the rows, with the product
    within the chunk (`transposed`: with the scores' transpose)."""
    return _read(
        (rows_BTNX, s_BNJHP, local),
        sizes,
        tile.within(sizes),
        chunk,
        rows_BTNX.dtype,
        flipped=False,
        transposed=transposed,
    )


def read_transposed(rows_BTNP, s_BNJHP, sizes: Sizes, tile: Tile, chunk: int):
    """Returns rows @ S^T of every chunk, BTNH in float32."""
    arrays = (rows_BTNP, s_BNJHP, None)
    form = {"flipped": True, "transposed": False}
    return _read(arrays, sizes, tile.within(sizes), chunk, jnp.float32, **form)


def _read(arrays, sizes, tile, chunk, dtype, **form):
    """Returns the rows' products; `flipped`: with the transpose of S."""
    width, block = sizes.P, tile.values
    if form["flipped"]:
        width, block = sizes.H, tile.keys
    kernel = partial(_read_kernel, sizes=sizes, tile=tile, chunk=chunk, **form)
    (out_BTNX,) = backend.call(
        kernel,
        arrays,
        outputs=[backend.Output((sizes.B, sizes.T, sizes.N, width), dtype)],
        grid=(pl.cdiv(width, block) * pl.cdiv(sizes.T, chunk), sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_linear_attention_read",
        interpret=sizes.interpret,
    )
    return out_BTNX


def _read_kernel(
    rows_BTNY, s_BNJHP, local, out_BTNX, *, sizes, tile, chunk, flipped, transposed
):
    (width, block), (depth, step) = (sizes.P, tile.values), (sizes.H, tile.keys)
    if flipped:
        (width, block), (depth, step) = (depth, step), (width, block)
    column_blocks, precise = pl.cdiv(width, block), sizes.rules.precise
    piece, head, batch = (pl.program_id(axis) for axis in range(3))
    number = jax.lax.div(piece, jnp.int32(column_blocks))
    columns = columns_of((piece - number * column_blocks) * block, block, width)
    place = (batch, head, number)
    here = blocks.tokens_of(*place, chunk, sizes, chunk)

    def body(y, out_CX):
        inner = columns_of(y * step, step, depth)
        rows_CY = blocks.load_rows(rows_BTNY, here, inner)
        if flipped:
            s_YX = load_matrix_transposed(s_BNJHP, place, columns, inner)
        else:
            s_YX = load_matrix(s_BNJHP, place, inner, columns)
        return out_CX + backend.dot(rows_CY, s_YX, precise=precise)

    out_CX = jnp.zeros((chunk, block), jnp.float32)
    steps = jnp.int32(pl.cdiv(depth, step))
    out_CX = jax.lax.fori_loop(jnp.int32(0), steps, body, out_CX)
    if local is not None:
        index = blocks.tile_index(here, 0, chunk)
        scores_CC = backend.load(local.scores_BNTC, index)
        values_CX = blocks.load_rows(local.values_BTNP, here, columns)
        product = backend.transposed_dot if transposed else backend.dot
        out_CX += product(scores_CC, values_CX, precise=precise)
    store_tokens(out_BTNX, here, columns, out_CX)


def score_gradients(dout_BTNP, v_BTNP, sizes: Sizes, tile: Tile, chunk: int):
    """Returns the cotangents of the scores, dout_t . v_s for s <= t of a chunk, else 0:
    BNT'C in the dtype of v."""
    tile = tile.within(sizes)
    J = pl.cdiv(sizes.T, chunk)
    (dscores_BNTC,) = backend.call(
        partial(_score_kernel, sizes=sizes, tile=tile, chunk=chunk),
        (dout_BTNP, v_BTNP),
        outputs=[backend.Output((sizes.B, sizes.N, J * chunk, chunk), v_BTNP.dtype)],
        grid=(J, sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_linear_attention_dscores",
        interpret=sizes.interpret,
    )
    return dscores_BNTC


def _score_kernel(dout_BTNP, v_BTNP, dscores_BNTC, *, sizes, tile, chunk):
    number, head, batch = (pl.program_id(axis) for axis in range(3))
    here = blocks.tokens_of(batch, head, number, chunk, sizes, chunk)

    def body(y, products_CC):
        values = columns_of(y * tile.values, tile.values, sizes.P)
        dout_CP = blocks.load_rows(dout_BTNP, here, values)
        v_CP = blocks.load_rows(v_BTNP, here, values)
        precise = sizes.rules.precise
        return products_CC + backend.dot_transposed(dout_CP, v_CP, precise=precise)

    products_CC = jnp.zeros((chunk, chunk), jnp.float32)
    steps = jnp.int32(pl.cdiv(sizes.P, tile.values))
    products_CC = jax.lax.fori_loop(jnp.int32(0), steps, body, products_CC)
    seen_CC = here.tokens_C[:, None] >= here.tokens_C[None, :]
    products_CC = jnp.where(seen_CC, products_CC, 0.0)
    backend.store(dscores_BNTC, blocks.tile_index(here, 0, chunk), products_CC)
