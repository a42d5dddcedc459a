"""The states of the matrix memory between chunks, as a Pallas kernel for GPUs.

A program owns a block of the state of one head and walks the whole row, in order for
the memory, in reverse for its gradient: C <- keep_j C + sum_s weight_s key_s value_s^T.
The state stays on chip in float32; what it was before each span of chunks is written in
the dtype of the values, which is how a product on the tensor cores reads it anyway.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Sizes
from pallas_kernels.matrix_memory.tiles import Tile


class Walk(NamedTuple):
    """What is written into the memory, chunk by chunk.

    A None in `sums_BNT` (the weights of the keys in the normaliser n), in the states
    before the first chunk (empty) or in `others_BNJHP`: not wanted.
    """

    keys_BTKH: Any
    values_BTNP: Any
    weights_BNT: Any
    sums_BNT: Any
    keep_BNJ: Any
    c_BNHP: Any
    n_BNH: Any
    others_BNJHP: Any = None  # the states whose products with these are wanted


class States(NamedTuple):
    """The states before each span, I of them, and after the last chunk; None where not
    wanted. `products_BNJX`: the sums of the states before each chunk times the others,
    one for each block X of a state.
    """

    c_BNIHP: Any = None
    n_BNIH: Any = None
    last_c_BNHP: Any = None
    last_n_BNH: Any = None
    products_BNJX: Any = None


def states(
    walk: Walk,
    sizes: Sizes,
    tile: Tile,
    /,
    *,
    chunk: int,
    span: int | None,
    last: bool,
    reverse: bool = False,
) -> States:
    """Returns the states before each span of `span` chunks (None: none of them) and,
    if `last`, after the last chunk; in `reverse`, time runs backwards."""
    tile = tile._replace(
        keys=min(tile.keys, sizes.key_width), values=min(tile.values, sizes.value_width)
    )
    tiles = pl.cdiv(sizes.H, tile.keys) * pl.cdiv(sizes.P, tile.values)
    wanted = _outputs(walk, sizes, tiles, span, last)
    kernel = partial(
        _kernel,
        names=tuple(wanted),
        sizes=sizes,
        tile=tile,
        chunk=chunk,
        span=span,
        reverse=reverse,
    )
    found = backend.call(
        kernel,
        (walk,),
        outputs=list(wanted.values()),
        grid=(tiles, sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="matrix_memory_states",
        interpret=sizes.interpret,
    )
    return States(**dict(zip(wanted, found, strict=True)))


def _outputs(walk, sizes, tiles, span, last) -> dict[str, backend.Output]:
    """Returns the wanted fields of States; `tiles` divide the state of a head."""
    B, N, H, P = sizes.B, sizes.N, sizes.H, sizes.P
    J = walk.keep_BNJ.shape[2]
    sums = walk.sums_BNT is not None
    wanted = {}
    if span is not None:
        I = pl.cdiv(J, span)
        wanted["c_BNIHP"] = backend.Output((B, N, I, H, P), walk.values_BTNP.dtype)
        if sums:
            wanted["n_BNIH"] = backend.Output((B, N, I, H), jnp.float32)
    if last:
        wanted["last_c_BNHP"] = backend.Output((B, N, H, P), jnp.float32)
        if sums:
            wanted["last_n_BNH"] = backend.Output((B, N, H), jnp.float32)
    if walk.others_BNJHP is not None:
        wanted["products_BNJX"] = backend.Output((B, N, J, tiles), jnp.float32)
    return wanted


def _kernel(walk, *outputs, names, sizes, tile, chunk, span, reverse):
    out = States(**dict(zip(names, outputs, strict=True)))
    block, head, batch = (pl.program_id(axis) for axis in range(3))
    value_blocks = pl.cdiv(sizes.P, tile.values)
    key_block = jax.lax.div(block, jnp.int32(value_blocks))
    value_block = block - key_block * value_blocks
    keys = blocks.columns_of(key_block * tile.keys, tile.keys, sizes.H)
    values = blocks.columns_of(value_block * tile.values, tile.values, sizes.P)
    first_block = value_block == 0  # it writes what is the same for all of them
    J = walk.keep_BNJ.shape[2]

    def write(state, j):
        c_HP, n_H = state
        if out.c_BNIHP is not None:
            place = (batch, head, jax.lax.div(j, jnp.int32(span)))
            starts = jax.lax.rem(j, jnp.int32(span)) == 0 if span > 1 else None
            blocks.store_matrix(out.c_BNIHP, place, keys, values, c_HP, starts)
        if out.n_BNIH is not None:
            mine = first_block if starts is None else first_block & starts
            blocks.store_vector(out.n_BNIH, place, keys, n_H, mine)
        if out.products_BNJX is not None:
            place = (batch, head, j)
            other_HP = blocks.load_matrix(walk.others_BNJHP, place, keys, values)
            products_H = jnp.sum(other_HP.astype(jnp.float32) * c_HP, axis=1)
            backend.store(out.products_BNJX, (*place, block), jnp.sum(products_H))

    def body(step, state):
        j = J - 1 - step if reverse else step
        write(state, j)
        here = blocks.chunk_of(batch, head, j, sizes, chunk)
        return _after(state, walk, here, keys, values, sizes)

    state = _start(walk, batch, head, keys, values, tile)
    c_HP, n_H = jax.lax.fori_loop(jnp.int32(0), jnp.int32(J), body, state)
    if out.last_c_BNHP is not None:
        blocks.store_matrix(out.last_c_BNHP, (batch, head), keys, values, c_HP)
    if out.last_n_BNH is not None:
        blocks.store_vector(out.last_n_BNH, (batch, head), keys, n_H, first_block)


def _start(walk, batch, head, keys, values, tile):
    """Returns this program's block of the state before the first chunk."""
    c_HP = jnp.zeros((tile.keys, tile.values), jnp.float32)
    n_H = jnp.zeros((tile.keys,), jnp.float32)
    if walk.c_BNHP is not None:
        c_HP = blocks.load_matrix(walk.c_BNHP, (batch, head), keys, values)
    if walk.n_BNH is not None:
        n_H = blocks.load_vector(walk.n_BNH, (batch, head), keys)
    return c_HP, n_H


def _after(state, walk, here, keys, values, sizes):
    """Returns the block of the state after a chunk."""
    keep = backend.load(walk.keep_BNJ, (here.batch, here.head, here.number))
    keys_CH = blocks.load_tokens(walk.keys_BTKH, here, here.key_head, keys)
    values_CP = blocks.load_tokens(walk.values_BTNP, here, here.head, values)
    weights_C = blocks.load_scalars(walk.weights_BNT, here)
    sums_C = None
    if walk.sums_BNT is not None:
        sums_C = blocks.load_scalars(walk.sums_BNT, here)
    written = (keep, keys_CH, values_CP, weights_C, sums_C)
    return blocks.after(state, *written, precise=sizes.rules.precise)
