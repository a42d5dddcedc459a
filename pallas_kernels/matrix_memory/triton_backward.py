"""The gradients of the matrix memory within each chunk, as Pallas kernels for GPUs.

A program owns a chunk of one head, and loops over blocks of the values. With r_t one
over the divisor of h_t, e_t the cotangent of scale n_t . q_t, W_ts the weight of token
s in the output at t, and dC, dn the cotangents of the state after the chunk:

U_ts = (r_t dh_t . v_s + e_t) W_ts scale
dq_t = sum_s U_ts k_s + old_t scale (r_t C dh_t + e_t n)
dk_s = sum_t U_ts q_t + write_s (dC v_s + dn)
dv_s = sum_t r_t W_ts scale (q_t . k_s) dh_t + write_s dC^T k_s

The gates' cotangents are sums over the products of each weight and its cotangent, in
float32: those of rows and columns come from the same numbers, so that they cancel
where they must. Scores are transposed where a product wants them so.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Sizes, Tokens, Weights
from pallas_kernels.matrix_memory.tiles import Tile
from pallas_kernels.matrix_memory.triton_states import States


class Tangents(NamedTuple):
    """What arrives from behind: dh; r_t and e_t, None where nothing is divided."""

    dh_BTNP: Any
    inverse_BNT: Any
    dproduct_BNT: Any


def query_gradient(
    tokens: Tokens, weights, tangents, befores: States, sizes, tile: Tile, chunk: int
):
    """Returns dq_BTNH for each head of values, and the cotangent of `old` (its
    logarithm), BNT'. `befores` are the states before each chunk."""
    B, T, N, H = sizes.B, sizes.T, sizes.N, sizes.H
    return _call(
        _dq_kernel,
        (tokens, weights, tangents, befores),
        [
            backend.Output((B, T, N, H), tokens.q_BTKH.dtype),
            backend.Output(weights.old_BNT.shape, jnp.float32),
        ],
        sizes,
        tile,
        chunk,
        name="matrix_memory_dq",
    )


def key_gradients(
    tokens: Tokens, weights, tangents, afters: States, sizes, tile: Tile, chunk: int
):
    """Returns dk_BTNH for each head of values, dv_BTNP, and the cotangents of the
    logarithms `row`, `column`, `own` and `write`, BNT'. `afters` are the cotangents of
    the states after each chunk."""
    B, T, N, H = sizes.B, sizes.T, sizes.N, sizes.H
    gate = backend.Output(weights.row_BNT.shape, jnp.float32)
    return _call(
        _dkv_kernel,
        (tokens, weights, tangents, afters),
        [
            backend.Output((B, T, N, H), tokens.k_BTKH.dtype),
            backend.Output(tokens.v_BTNP.shape, tokens.v_BTNP.dtype),
            *(gate,) * 4,
        ],
        sizes,
        tile,
        chunk,
        name="matrix_memory_dkv",
    )


def _call(kernel, arrays, outputs, sizes: Sizes, tile: Tile, chunk: int, *, name: str):
    """Returns the outputs of a kernel whose programs own a chunk of a head each."""
    tile = tile._replace(values=min(tile.values, sizes.value_width))
    weights: Weights = arrays[1]
    # An operand: a loop known to run once is unrolled, and overflows the registers.
    value_blocks_1 = jnp.full((1,), pl.cdiv(sizes.P, tile.values), jnp.int32)
    return backend.call(
        partial(kernel, sizes=sizes, tile=tile, chunk=chunk),
        backend.alike((*arrays, value_blocks_1)),
        outputs=outputs,
        grid=(weights.keep_BNJ.shape[2], sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name=name,
        interpret=sizes.interpret,
    )


def _here(sizes, chunk):
    """Returns this program's chunk and all columns of its keys."""
    number, head, batch = (pl.program_id(axis) for axis in range(3))
    here = blocks.chunk_of(batch, head, number, sizes, chunk)
    return here, blocks.columns_of(0, sizes.key_width, sizes.H)


def _dq_kernel(
    tokens, weights, tangents, befores, value_blocks_1, *outputs, sizes, tile, chunk
):
    dq_BTNH, dold_BNT = outputs
    here, keys = _here(sizes, chunk)
    place = (here.batch, here.head, here.number)
    precise = sizes.rules.precise

    def body(block, carry):
        reads_CC, old_CH = carry
        values = blocks.columns_of(block * tile.values, tile.values, sizes.P)
        dh_CP = blocks.load_tokens(tangents.dh_BTNP, here, here.head, values)
        v_PC = blocks.load_tokens_transposed(tokens.v_BTNP, here, here.head, values)
        reads_CC += backend.dot(dh_CP, v_PC, precise=precise)
        c_PH = blocks.load_matrix_transposed(befores.c_BNIHP, place, keys, values)
        return reads_CC, old_CH + backend.dot(dh_CP, c_PH, precise=precise)

    reads_CC, old_CH = _over_values(body, value_blocks_1, sizes, chunk)
    if tangents.inverse_BNT is not None:
        inverse_C = blocks.load_scalars(tangents.inverse_BNT, here)
        dproduct_C = blocks.load_scalars(tangents.dproduct_BNT, here)
        n_H = blocks.load_vector(befores.n_BNIH, place, keys)
        reads_CC = reads_CC * inverse_C[:, None] + dproduct_C[:, None]
        old_CH = old_CH * inverse_C[:, None] + dproduct_C[:, None] * n_H[None, :]
    old_C = sizes.rules.scale * blocks.load_scalars(weights.old_BNT, here)
    old_CH = old_CH * old_C[:, None]
    q_CH = blocks.load_tokens(tokens.q_BTKH, here, here.key_head, keys)
    dold_C = jnp.sum(q_CH.astype(jnp.float32) * old_CH, axis=1)
    blocks.store_scalars(dold_BNT, here, dold_C)
    k_CH = blocks.load_tokens(tokens.k_BTKH, here, here.key_head, keys)
    scores_CC = reads_CC * blocks.within(weights, here, transposed=False)
    scores_CC = (scores_CC * sizes.rules.scale).astype(k_CH.dtype)
    dq_CH = old_CH + backend.dot(scores_CC, k_CH, precise=precise)
    blocks.store_tokens(dq_BTNH, here, keys, dq_CH)


def _over_values(body, value_blocks_1, sizes, chunk):
    """Returns what `body(block, carry)` has summed over all blocks of the values: C by
    C, and C by the columns of the keys."""
    zeros_CC = jnp.zeros((chunk, chunk), jnp.float32)
    zeros_CH = jnp.zeros((chunk, sizes.key_width), jnp.float32)
    count = value_blocks_1[0]
    return jax.lax.fori_loop(jnp.int32(0), count, body, (zeros_CC, zeros_CH))


def _dkv_kernel(
    tokens, weights, tangents, afters, value_blocks_1, *outputs, sizes, tile, chunk
):
    dk_BTNH, dv_BTNP, *dscalars = outputs
    here, keys = _here(sizes, chunk)
    place = (here.batch, here.head, here.number)
    precise = sizes.rules.precise
    _, k_CH, products_CC = _products(tokens, here, keys, sizes)
    scores_CC = products_CC * blocks.within(weights, here, transposed=True)
    if tangents.inverse_BNT is not None:
        scores_CC *= blocks.load_scalars(tangents.inverse_BNT, here)[None, :]
    read_CC = (scores_CC * sizes.rules.scale).astype(tokens.v_BTNP.dtype)
    write_C = blocks.load_scalars(weights.write_BNT, here)

    def body(block, carry):
        writes_CC, write_CH = carry
        values = blocks.columns_of(block * tile.values, tile.values, sizes.P)
        dh_CP = blocks.load_tokens(tangents.dh_BTNP, here, here.head, values)
        v_CP = blocks.load_tokens(tokens.v_BTNP, here, here.head, values)
        dc_HP = blocks.load_matrix(afters.c_BNIHP, place, keys, values)
        writes_CC += backend.dot_transposed(v_CP, dh_CP, precise=precise)
        write_CH += backend.dot_transposed(v_CP, dc_HP, precise=precise)
        dv_CP = backend.dot(k_CH, dc_HP, precise=precise) * write_C[:, None]
        dv_CP += backend.dot(read_CC, dh_CP, precise=precise)
        blocks.store_tokens(dv_BTNP, here, values, dv_CP)
        return writes_CC, write_CH

    writes_CC, write_CH = _over_values(body, value_blocks_1, sizes, chunk)
    if tangents.inverse_BNT is not None:
        inverse_C = blocks.load_scalars(tangents.inverse_BNT, here)
        dproduct_C = blocks.load_scalars(tangents.dproduct_BNT, here)
        writes_CC = writes_CC * inverse_C[None, :] + dproduct_C[None, :]
    if afters.n_BNIH is not None:
        write_CH += blocks.load_vector(afters.n_BNIH, place, keys)[None, :]
    write_CH *= write_C[:, None]
    # Read and multiplied again: to keep them takes the registers of the loop.
    q_CH, k_CH, products_CC = _products(tokens, here, keys, sizes)
    dscores_CC = writes_CC * blocks.within(weights, here, transposed=True)
    dscores_CC *= sizes.rules.scale
    dwrite_C = jnp.sum(k_CH.astype(jnp.float32) * write_CH, axis=1)
    _store_scalars(dscalars, here, dscores_CC * products_CC, dwrite_C)
    dscores_CC = dscores_CC.astype(q_CH.dtype)
    dk_CH = write_CH + backend.dot(dscores_CC, q_CH, precise=precise)
    blocks.store_tokens(dk_BTNH, here, keys, dk_CH)


def _products(tokens, here, keys, sizes):
    """Returns q, k and k . q of a chunk, keys by queries."""
    q_CH = blocks.load_tokens(tokens.q_BTKH, here, here.key_head, keys)
    k_CH = blocks.load_tokens(tokens.k_BTKH, here, here.key_head, keys)
    return q_CH, k_CH, backend.dot_transposed(k_CH, q_CH, precise=sizes.rules.precise)


def _store_scalars(dscalars, here, shares_CC, dwrite_C):
    """Returns nothing; writes the cotangents of `row`, `column`, `own` and `write` from
    the products of each weight and its cotangent, keys by queries."""
    drow_BNT, dcolumn_BNT, down_BNT, dwrite_BNT = dscalars
    own_CC = here.tokens_C[:, None] == here.tokens_C[None, :]
    blocks.store_scalars(down_BNT, here, _sum_where(own_CC, shares_CC, axis=1))
    blocks.store_scalars(dcolumn_BNT, here, _sum_where(~own_CC, shares_CC, axis=1))
    blocks.store_scalars(drow_BNT, here, _sum_where(~own_CC, shares_CC, axis=0))
    blocks.store_scalars(dwrite_BNT, here, dwrite_C)


def _sum_where(mask, x, *, axis):
    """Returns the sums of what the mask leaves."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=axis)
