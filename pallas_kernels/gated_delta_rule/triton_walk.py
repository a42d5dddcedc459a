"""The memory of the gated delta rule from chunk to chunk, as a Pallas kernel for GPUs.

A program owns a block of the columns of one head's memory, which stays on chip in
float32 from the first chunk to the last, and carries through every chunk

x_s = source_s + weight_s S^T read_s
S <- keep S + sum_s written_s (factor_s x_s)^T [+ sum_t q_t (old_t dout_t)^T]

Forward the x are the corrected values; in reverse, S is the cotangent of the memory
after the chunk and the x are the cotangents of the corrected values.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule.tiles import Tile
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Sizes


class Walk(NamedTuple):
    """What a walk reads; heads of reads and of writes are those of keys or of values.

    A weight or factor of None is minus one; the others that are None are not there.
    """

    source_BTNP: Any
    read_BTNH: Any
    weight_BNT: Any
    written_BTNH: Any
    factor_BNT: Any
    keep_BNJ: Any
    s_BNHP: Any = None  # before the first step; None is zero
    q_BTKH: Any = None
    old_BNT: Any = None
    dout_BTNP: Any = None
    others_BNJHP: Any = None  # the memories whose products with these are wanted


class Walked(NamedTuple):
    """The memory before each step of a chunk, in the dtype of the values; the x; the
    last memory; the sums of the memories times the others, one a block X of columns."""

    s_BNJHP: Any = None
    x_BTNP: Any = None
    last_BNHP: Any = None
    products_BNJX: Any = None


def walked(
    walk: Walk, sizes: Sizes, tile: Tile, chunk: int, *, reverse: bool = False
) -> Walked:
    """Returns what the walk finds: forward the memories before each chunk and the
    corrected values; in `reverse` the cotangents of the memories after each chunk."""
    tile = tile._replace(values=min(tile.values, sizes.value_width))
    B, T, N, H, P = sizes.B, sizes.T, sizes.N, sizes.H, sizes.P
    J, value_blocks = pl.cdiv(T, chunk), pl.cdiv(P, tile.values)
    dtype = walk.source_BTNP.dtype
    wanted = {
        "s_BNJHP": backend.Output((B, N, J, H, P), dtype),
        "last_BNHP": backend.Output((B, N, H, P), jnp.float32),
    }
    if not reverse:
        wanted["x_BTNP"] = backend.Output((B, T, N, P), dtype)
    if walk.others_BNJHP is not None:
        products = backend.Output((B, N, J, value_blocks), jnp.float32)
        wanted["products_BNJX"] = products
    static = {"sizes": sizes, "tile": tile, "chunk": chunk, "reverse": reverse}
    found = backend.call(
        partial(_kernel, names=tuple(wanted), **static),
        (walk,),
        outputs=list(wanted.values()),
        grid=(value_blocks, N, B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_delta_rule_walk",
        interpret=sizes.interpret,
    )
    return Walked(**dict(zip(wanted, found, strict=True)))


def _kernel(walk, *outputs, names, sizes, tile, chunk, reverse):
    out = Walked(**dict(zip(names, outputs, strict=True)))
    block, head, batch = (pl.program_id(axis) for axis in range(3))
    keys = blocks.columns_of(0, sizes.key_width, sizes.H)
    values = blocks.columns_of(block * tile.values, tile.values, sizes.P)
    J = pl.cdiv(sizes.T, chunk)

    def body(step, s_HP):
        j = J - 1 - step if reverse else step
        here = blocks.chunk_of(batch, head, j, sizes, chunk)
        blocks.store_matrix(out.s_BNJHP, (batch, head, j), keys, values, s_HP)
        if out.products_BNJX is not None:
            place = (batch, head, j)
            other_HP = blocks.load_matrix(walk.others_BNJHP, place, keys, values)
            products_H = jnp.sum(other_HP.astype(jnp.float32) * s_HP, axis=1)
            backend.store(out.products_BNJX, (*place, block), jnp.sum(products_H))
        x_CP = _read(walk, s_HP, here, keys, values, sizes)
        if out.x_BTNP is not None:
            blocks.store_tokens(out.x_BTNP, here, values, x_CP)
        return _after(walk, s_HP, x_CP, here, keys, values, sizes)

    s_HP = jnp.zeros((sizes.key_width, tile.values), jnp.float32)
    if walk.s_BNHP is not None:
        s_HP = blocks.load_matrix(walk.s_BNHP, (batch, head), keys, values)
    s_HP = jax.lax.fori_loop(jnp.int32(0), jnp.int32(J), body, s_HP)
    blocks.store_matrix(out.last_BNHP, (batch, head), keys, values, s_HP)


def _read(walk, s_HP, here, keys, values, sizes):
    """Returns the x of a chunk, zero where there is no token."""
    read_CH = _tokens(walk.read_BTNH, here, keys, sizes)
    x_CP = backend.dot(read_CH, s_HP.astype(read_CH.dtype), precise=sizes.rules.precise)
    x_CP *= _column(walk.weight_BNT, here)
    source_CP = blocks.load_tokens(walk.source_BTNP, here, here.head, values)
    x_CP += source_CP.astype(jnp.float32)
    return x_CP if here.valid_C is None else jnp.where(here.valid_C[:, None], x_CP, 0.0)


def _after(walk, s_HP, x_CP, here, keys, values, sizes):
    """Returns the memory after a chunk."""
    dot = partial(backend.transposed_dot, precise=sizes.rules.precise)
    s_HP *= backend.load(walk.keep_BNJ, (here.batch, here.head, here.number))
    written_CH = _tokens(walk.written_BTNH, here, keys, sizes)
    x_CP = x_CP * _column(walk.factor_BNT, here)
    s_HP += dot(written_CH, x_CP.astype(written_CH.dtype))
    if walk.dout_BTNP is not None:
        q_CH = _tokens(walk.q_BTKH, here, keys, sizes)
        dout_CP = blocks.load_tokens(walk.dout_BTNP, here, here.head, values)
        dout_CP = dout_CP.astype(jnp.float32) * _column(walk.old_BNT, here)
        s_HP += dot(q_CH, dout_CP.astype(q_CH.dtype))
    return s_HP


def _tokens(ref, here, keys, sizes):
    """Returns a chunk of keys, queries or what else has their columns."""
    head = jax.lax.div(here.head, jnp.int32(sizes.N // ref.shape[2]))
    return blocks.load_tokens(ref, here, head, keys)


def _column(weights_BNT, here):
    """Returns the weights of a chunk's tokens as a column, minus one for None."""
    if weights_BNT is None:
        return -1.0
    return blocks.load_scalars(weights_BNT, here)[:, None]
