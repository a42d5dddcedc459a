"""The gradients of the corrections within each chunk, as a Pallas kernel for GPUs.

The corrected values are U = A (beta (V - exp(b) K S_0)), A = (I + L)^{-1}. With dR =
A^T dU, which is the cotangent of what A multiplies, that of L is -dR U^T. So with
W_ts = exp(b_t - b_s) for s < t of one run and old_t = exp(b_t)

dk_t = -beta_t old_t S_0 dR_t - sum_s (dR_t . u_s) beta_t W_ts k_s
       - sum_r (dR_r . u_t) beta_r W_rt k_r

A program owns a chunk of one head, and loops over blocks of the values.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule.tiles import Tile
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Sizes, Tokens, Weights


class Shares(NamedTuple):
    """The cotangents that pass through the corrections: of the keys, by head of values;
    of beta, but for dR_t . v_t; of the logarithms of the weights."""

    k_BTNH: Any
    beta_BNT: Any
    row_BNT: Any
    column_BNT: Any
    old_BNT: Any


def correction_gradients(
    tokens: Tokens,
    weights: Weights,
    beta_BNT,
    dr_BTNP,
    s_BNJHP,
    sizes: Sizes,
    tile: Tile,
    chunk: int,
) -> Shares:
    """Returns the Shares of all chunks. The values of the tokens are the corrected
    ones, `s_BNJHP` the memories before each chunk."""
    tile = tile._replace(values=min(tile.values, sizes.value_width))
    # An operand: a loop known to run once is unrolled, and overflows the registers.
    value_blocks_1 = jnp.full((1,), pl.cdiv(sizes.P, tile.values), jnp.int32)
    arrays = (tokens, weights, beta_BNT, dr_BTNP, s_BNJHP, value_blocks_1)
    scalar = backend.Output(beta_BNT.shape, jnp.float32)
    shape = (sizes.B, sizes.T, sizes.N, sizes.H)
    found = backend.call(
        partial(_kernel, sizes=sizes, tile=tile, chunk=chunk),
        backend.alike(arrays),
        outputs=[backend.Output(shape, tokens.k_BTKH.dtype), *(scalar,) * 4],
        grid=(weights.keep_BNJ.shape[2], sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_delta_rule_keys",
        interpret=sizes.interpret,
    )
    return Shares(*found)


def _kernel(
    tokens,
    weights,
    beta_BNT,
    dr_BTNP,
    s_BNJHP,
    value_blocks_1,
    *outputs,
    sizes,
    tile,
    chunk,
):
    number, head, batch = (pl.program_id(axis) for axis in range(3))
    here = blocks.chunk_of(batch, head, number, sizes, chunk)
    keys = blocks.columns_of(0, sizes.key_width, sizes.H)
    place, precise = (batch, head, number), sizes.rules.precise

    def body(block, carry):
        rows_CC, columns_CC, old_CH = carry
        values = blocks.columns_of(block * tile.values, tile.values, sizes.P)
        u_CP = blocks.load_tokens(tokens.v_BTNP, here, head, values)
        dr_CP = blocks.load_tokens(dr_BTNP, here, head, values)
        s_HP = blocks.load_matrix(s_BNJHP, place, keys, values)
        rows_CC += backend.dot_transposed(dr_CP, u_CP, precise=precise)
        columns_CC += backend.dot_transposed(u_CP, dr_CP, precise=precise)
        old_CH += backend.dot_transposed(dr_CP, s_HP, precise=precise)
        return rows_CC, columns_CC, old_CH

    zeros_CC = jnp.zeros((chunk, chunk), jnp.float32)
    zeros_CH = jnp.zeros((chunk, sizes.key_width), jnp.float32)
    carry = (zeros_CC, zeros_CC, zeros_CH)
    carry = jax.lax.fori_loop(jnp.int32(0), value_blocks_1[0], body, carry)
    k_CH = blocks.load_tokens(tokens.k_BTKH, here, here.key_head, keys)
    beta_C = blocks.load_scalars(beta_BNT, here)
    dk_CH, scalars = _shares(carry, k_CH, beta_C, weights, here, precise)
    blocks.store_tokens(outputs[0], here, keys, dk_CH)
    for ref, values_C in zip(outputs[1:], scalars, strict=True):
        blocks.store_scalars(ref, here, values_C)


def _shares(carry, k_CH, beta_C, weights, here, precise):
    """Returns dk_CH, and the cotangents of beta, `row`, `column` and `old`.

    Those of rows and columns are sums of the same numbers, so that they cancel where
    they must.
    """
    rows_CC, columns_CC, old_CH = carry
    below_CC = here.tokens_C[:, None] > here.tokens_C[None, :]
    above_CC = here.tokens_C[:, None] < here.tokens_C[None, :]
    rows_CC *= -blocks.within(weights, here, transposed=False)
    rows_CC = jnp.where(below_CC, rows_CC, 0.0)
    columns_CC *= -blocks.within(weights, here, transposed=True) * beta_C[None, :]
    columns_CC = jnp.where(above_CC, columns_CC, 0.0)
    old_CH *= -blocks.load_scalars(weights.old_BNT, here)[:, None]
    old_C = jnp.sum(old_CH * k_CH.astype(jnp.float32), axis=1)
    shares_CC = rows_CC * backend.dot_transposed(k_CH, k_CH, precise=precise)
    dbeta_C = old_C + jnp.sum(shares_CC, axis=1)
    shares_CC *= beta_C[:, None]
    drow_C, dcolumn_C = jnp.sum(shares_CC, axis=1), jnp.sum(shares_CC, axis=0)
    both_CC = (rows_CC * beta_C[:, None] + columns_CC).astype(k_CH.dtype)
    dk_CH = old_CH * beta_C[:, None] + backend.dot(both_CC, k_CH, precise=precise)
    return dk_CH, (dbeta_C, drow_C, dcolumn_C, beta_C * old_C)
