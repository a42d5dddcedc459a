"""What the queries read of the matrix memory, as a Pallas kernel for GPUs.

A program owns a block of the values of one head and walks the chunks of a span. The
state stays on chip from chunk to chunk; with a span of one chunk, every state comes
from memory (Beck et al. 2025, arXiv:2503.14376, section 3, has a chunk's equations).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Columns, Sizes, Tokens, Weights
from pallas_kernels.matrix_memory.tiles import Tile
from pallas_kernels.matrix_memory.triton_states import States


def read(
    tokens: Tokens,
    weights: Weights,
    floor_BNT,
    starts: States,
    sizes: Sizes,
    tile: Tile,
    /,
    *,
    chunk: int,
    span: int,
):
    """Returns h_BTNP and, in float32, scale n_t . q_t of shape BNT' (None without
    normaliser).

    `starts` are the states before each span of `span` chunks, None where empty;
    `floor_BNT` is the least divisor, None where nothing is divided.
    """
    tile = tile._replace(values=min(tile.values, sizes.value_width))
    value_blocks = pl.cdiv(sizes.P, tile.values)
    J = weights.keep_BNJ.shape[2]
    outputs = [backend.Output(tokens.v_BTNP.shape, tokens.v_BTNP.dtype)]
    if floor_BNT is not None:
        outputs.append(backend.Output(weights.row_BNT.shape, jnp.float32))
    kernel = partial(_kernel, sizes=sizes, tile=tile, chunk=chunk, span=span)
    h_BTNP, *products = backend.call(
        kernel,
        (tokens, weights, floor_BNT, starts),
        outputs=outputs,
        grid=(value_blocks * pl.cdiv(J, span), sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="matrix_memory_read",
        interpret=sizes.interpret,
    )
    return h_BTNP, products[0] if products else None


def _kernel(tokens, weights, floor_BNT, starts, *outputs, sizes, tile, chunk, span):
    piece, head, batch = (pl.program_id(axis) for axis in range(3))
    value_blocks = pl.cdiv(sizes.P, tile.values)
    number = jax.lax.div(piece, jnp.int32(value_blocks))
    block = piece - number * value_blocks
    keys = blocks.columns_of(0, sizes.key_width, sizes.H)
    values = blocks.columns_of(block * tile.values, tile.values, sizes.P)

    def body(j, state):
        here = blocks.chunk_of(batch, head, j, sizes, chunk)
        q_CH = blocks.load_tokens(tokens.q_BTKH, here, here.key_head, keys)
        k_CH = blocks.load_tokens(tokens.k_BTKH, here, here.key_head, keys)
        v_CP = blocks.load_tokens(tokens.v_BTNP, here, head, values)
        h_CP, product_C = _chunk(q_CH, k_CH, v_CP, state, weights, here, sizes)
        if product_C is not None:
            # Equal in all blocks of the values: the first one writes it.
            blocks.store_scalars(outputs[1], here, product_C, block == 0)
            floor_C = blocks.load_scalars(floor_BNT, here)
            divisor_C = jnp.maximum(jnp.abs(product_C), floor_C) + sizes.rules.eps
            h_CP = h_CP / divisor_C[:, None]
        blocks.store_tokens(outputs[0], here, values, h_CP)
        if span == 1:
            return state
        return _after(k_CH, v_CP, state, weights, here, sizes)

    state = _start(starts, (batch, head, number), keys, values)
    first = number * span
    if span == 1:
        body(first, state)
    else:
        end = jnp.minimum(first + span, weights.keep_BNJ.shape[2])
        jax.lax.fori_loop(first, end, body, state)


def _start(starts: States, place, keys: Columns, values: Columns):
    """Returns this program's block of the state before its span."""
    c_HP = jnp.zeros((len(keys.index_X), len(values.index_X)), jnp.float32)
    n_H = jnp.zeros((len(keys.index_X),), jnp.float32)
    if starts.c_BNIHP is not None:
        c_HP = blocks.load_matrix(starts.c_BNIHP, place, keys, values)
        c_HP = c_HP.astype(jnp.float32)
    if starts.n_BNIH is not None:
        n_H = blocks.load_vector(starts.n_BNIH, place, keys)
    return c_HP, n_H


def _chunk(q_CH, k_CH, v_CP, state, weights, here, sizes):
    """Returns scale C^T q and scale n . q of each token of a chunk."""
    c_HP, n_H = state
    scale, precise = sizes.rules.scale, sizes.rules.precise
    old_C = scale * blocks.load_scalars(weights.old_BNT, here)
    scores_CC = backend.dot_transposed(q_CH, k_CH, precise=precise) * scale
    scores_CC *= blocks.within(weights, here, transposed=False)
    h_CP = backend.dot(q_CH, c_HP.astype(q_CH.dtype), precise=precise) * old_C[:, None]
    h_CP += backend.dot(scores_CC.astype(v_CP.dtype), v_CP, precise=precise)
    product_C = None
    if sizes.rules.normalize:
        read_C = blocks.times_vector(q_CH, n_H, precise=precise)
        product_C = jnp.sum(scores_CC, axis=1) + old_C * read_C
    return h_CP, product_C


def _after(k_CH, v_CP, state, weights, here, sizes):
    """Returns the block of the state after a chunk."""
    keep = backend.load(weights.keep_BNJ, (here.batch, here.head, here.number))
    write_C = blocks.load_scalars(weights.write_BNT, here)
    sums_C = write_C if sizes.rules.normalize else None
    written = (keep, k_CH, v_CP, write_C, sums_C)
    return blocks.after(state, *written, precise=sizes.rules.precise)
