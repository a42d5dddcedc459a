"""The memory of gated linear attention between chunks, as a Pallas kernel for GPUs.

A program owns a block of the memory of one head and walks the whole row, in order for
the memory, in reverse for its cotangent: S <- keep_j S + sum_s rows_s values_s^T, each
row of S with its own keep. It stays on chip in float32; what it was before each chunk
is written in the dtype of the values, in which it is read.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.gated_linear_attention.blocks import load_rows, tokens_of
from pallas_kernels.gated_linear_attention.tiles import Tile
from pallas_kernels.matrix_memory.blocks import (
    Sizes,
    columns_of,
    load_matrix,
    load_vector,
    store_matrix,
    store_vector,
)


class Walk(NamedTuple):
    """What is written into the memory, chunk by chunk; a last None is not wanted."""

    rows_BTNH: Any
    values_BTNP: Any
    keep_BNJH: Any
    s_BNHP: Any = None  # before the first step; None is zero
    others_BNJHP: Any = None  # the memories whose products with these are wanted


class States(NamedTuple):
    """The memory before each step, and after the last one; and the sums over its
    columns of what it is before each step times the others, one for each block X."""

    s_BNJHP: Any = None
    products_BNJXH: Any = None
    last_BNHP: Any = None


def states(
    walk: Walk,
    sizes: Sizes,
    tile: Tile,
    chunk: int,
    *,
    last: bool,
    reverse: bool = False,
) -> States:
    """Returns the memories before each step; in `reverse`, time runs backwards."""
    tile = tile.within(sizes)
    key_blocks, value_blocks = (
        pl.cdiv(sizes.H, tile.keys),
        pl.cdiv(sizes.P, tile.values),
    )
    B, N, H, P = sizes.B, sizes.N, sizes.H, sizes.P
    J = pl.cdiv(sizes.T, chunk)
    wanted = {"s_BNJHP": backend.Output((B, N, J, H, P), walk.values_BTNP.dtype)}
    if walk.others_BNJHP is not None:
        products = backend.Output((B, N, J, value_blocks, H), jnp.float32)
        wanted["products_BNJXH"] = products
    if last:
        wanted["last_BNHP"] = backend.Output((B, N, H, P), jnp.float32)
    static = {"sizes": sizes, "tile": tile, "chunk": chunk, "reverse": reverse}
    found = backend.call(
        partial(_kernel, names=tuple(wanted), **static),
        (walk,),
        outputs=list(wanted.values()),
        grid=(key_blocks * value_blocks, N, B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_linear_attention_states",
        interpret=sizes.interpret,
    )
    return States(**dict(zip(wanted, found, strict=True)))


def _kernel(walk, *outputs, names, sizes, tile, chunk, reverse):
    out = States(**dict(zip(names, outputs, strict=True)))
    block, head, batch = (pl.program_id(axis) for axis in range(3))
    value_blocks = pl.cdiv(sizes.P, tile.values)
    key_block = jax.lax.div(block, jnp.int32(value_blocks))
    value_block = block - key_block * value_blocks
    keys = columns_of(key_block * tile.keys, tile.keys, sizes.H)
    values = columns_of(value_block * tile.values, tile.values, sizes.P)
    J = pl.cdiv(sizes.T, chunk)

    def body(step, s_HP):
        j = J - 1 - step if reverse else step
        place = (batch, head, j)
        store_matrix(out.s_BNJHP, place, keys, values, s_HP)
        if out.products_BNJXH is not None:
            other_HP = load_matrix(walk.others_BNJHP, place, keys, values)
            products_H = jnp.sum(other_HP.astype(jnp.float32) * s_HP, axis=1)
            store_vector(out.products_BNJXH, (*place, value_block), keys, products_H)
        here = tokens_of(*place, chunk, sizes, chunk)
        rows_CH = load_rows(walk.rows_BTNH, here, keys)
        values_CP = load_rows(walk.values_BTNP, here, values)
        written_HP = backend.transposed_dot(
            rows_CH, values_CP, precise=sizes.rules.precise
        )
        return load_vector(walk.keep_BNJH, place, keys)[:, None] * s_HP + written_HP

    s_HP = jnp.zeros((tile.keys, tile.values), jnp.float32)
    if walk.s_BNHP is not None:
        s_HP = load_matrix(walk.s_BNHP, (batch, head), keys, values)
    s_HP = jax.lax.fori_loop(jnp.int32(0), jnp.int32(J), body, s_HP)
    if out.last_BNHP is not None:
        store_matrix(out.last_BNHP, (batch, head), keys, values, s_HP)
