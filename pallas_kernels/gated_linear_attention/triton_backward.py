"""The gradients of queries, keys and decays, as a Pallas kernel for GPUs.

A program owns a sub-block of 16 tokens of one head and a block of key channels. With
w_tsh = exp(b_th - b_sh) between two tokens of a chunk, dA the cotangents of the scores,
and dr, dw those of what reads the memory before and what goes into the one after:

dq_t = scale (sum_{s <= t} dA_ts w_ts k_s + exp(b_t) dr_t)
dk_s = scale sum_{t >= s} dA_ts w_ts q_t + exp(b_C - b_s) dw_s

The products of q and k with the terms of their gradients are the cotangents of the
sums of decays that the terms' weights are made of. A token has no decay to itself: that
term is left out of them, where it would drown the others.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.gated_linear_attention import blocks
from pallas_kernels.gated_linear_attention.blocks import SUB_BLOCK
from pallas_kernels.gated_linear_attention.decays import Decays
from pallas_kernels.gated_linear_attention.tiles import Tile
from pallas_kernels.matrix_memory.blocks import Sizes, columns_of, store_tokens


class Tangents(NamedTuple):
    """The cotangents of the scores, BNT'C, and of `reads` and `writes`, in float32."""

    dscores_BNTC: Any
    dreads_BTNH: Any
    dwrites_BTNH: Any


class Gradients(NamedTuple):
    """The cotangents of q and k, and in float32 the two parts of that of the sums of
    decays that `decay_gradient` of decays.py takes."""

    dq_BTNH: Any
    dk_BTNH: Any
    later_BTNH: Any
    earlier_BTNH: Any


def gradients(
    q_BTNH,
    k_BTNH,
    decays: Decays,
    tangents: Tangents,
    sizes: Sizes,
    tile: Tile,
    chunk: int,
) -> Gradients:
    """Returns the gradients of all tokens."""
    tile = tile.within(sizes)
    sub_blocks = pl.cdiv(sizes.T, chunk) * (chunk // SUB_BLOCK)
    outputs = [
        backend.Output(q_BTNH.shape, dtype)
        for dtype in (q_BTNH.dtype, k_BTNH.dtype, jnp.float32, jnp.float32)
    ]
    found = backend.call(
        partial(_kernel, sizes=sizes, tile=tile, chunk=chunk),
        (q_BTNH, k_BTNH, decays, tangents),
        outputs=outputs,
        grid=(pl.cdiv(sizes.H, tile.keys) * sub_blocks, sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_linear_attention_gradients",
        interpret=sizes.interpret,
    )
    return Gradients(*found)


class _Operands(NamedTuple):
    """The arrays of the kernel and the columns of this program."""

    q_BTNH: Any
    k_BTNH: Any
    decays: Decays
    tangents: Tangents
    keys: Any
    sizes: Sizes
    chunk: int


def _kernel(q_BTNH, k_BTNH, decays, tangents, *outputs, sizes, tile, chunk):
    out = Gradients(*outputs)
    key_blocks = pl.cdiv(sizes.H, tile.keys)
    piece, head, batch = (pl.program_id(axis) for axis in range(3))
    number = jax.lax.div(piece, jnp.int32(key_blocks))
    first_key = (piece - number * key_blocks) * tile.keys
    keys = columns_of(first_key, tile.keys, sizes.H)
    here = blocks.tokens_of(batch, head, number, SUB_BLOCK, sizes, chunk)
    x = _Operands(q_BTNH, k_BTNH, decays, tangents, keys, sizes, chunk)
    own = blocks.load_sums(decays, here, keys)
    carry = _inside(x, here, own, _across(x, here, own))
    dq_LH, dk_LH = (sizes.rules.scale * x_LH for x_LH in carry)

    q_LH = blocks.load_rows(q_BTNH, here, keys).astype(jnp.float32)
    k_LH = blocks.load_rows(k_BTNH, here, keys).astype(jnp.float32)
    end_token = blocks.first_sub_block(number, chunk) * SUB_BLOCK + chunk - 1
    end = blocks.sums_at(decays, here, end_token, keys, sizes)
    dread_LH = blocks.load_rows(tangents.dreads_BTNH, here, keys)
    dread_LH *= sizes.rules.scale * blocks.weight(own)
    dwrite_LH = blocks.load_rows(tangents.dwrites_BTNH, here, keys)
    dwrite_LH *= blocks.weight(end, own)
    store_tokens(out.later_BTNH, here, keys, q_LH * dread_LH)
    earlier_LH = k_LH * (dk_LH + dwrite_LH) - q_LH * dq_LH
    store_tokens(out.earlier_BTNH, here, keys, earlier_LH)

    column_L = jax.lax.rem(here.tokens_C, jnp.int32(chunk))
    index = (here.batch, here.head, here.tokens_C, column_L)
    own_L1 = backend.load(tangents.dscores_BNTC, index).astype(jnp.float32)[:, None]
    own_L1 *= sizes.rules.scale
    store_tokens(out.dq_BTNH, here, keys, dq_LH + dread_LH + own_L1 * k_LH)
    store_tokens(out.dk_BTNH, here, keys, dk_LH + dwrite_LH + own_L1 * q_LH)


def _across(x: _Operands, here, own):
    """Returns what dq and dk of a sub-block take from the chunk's other sub-blocks."""
    number, decays = here.number, x.decays
    first = blocks.first_sub_block(number, x.chunk)
    dtype, precise = x.q_BTNH.dtype, x.sizes.rules.precise
    before = partial(blocks.sums_before, columns=x.keys, sizes=x.sizes, chunk=x.chunk)
    start = before(decays, here, number)

    def tokens_of(number):
        sizes = (SUB_BLOCK, x.sizes, x.chunk)
        return blocks.tokens_of(here.batch, here.head, number, *sizes)

    def scores(there, columns):
        index = blocks.tile_index(there, columns * SUB_BLOCK, SUB_BLOCK)
        return backend.load(x.tangents.dscores_BNTC, index)

    def earlier(other, dq_LH):
        there = tokens_of(other)
        sums = blocks.load_sums(decays, there, x.keys)
        k_LH = blocks.load_rows(x.k_BTNH, there, x.keys).astype(jnp.float32)
        k_LH = (k_LH * blocks.weight(start, sums)).astype(dtype)
        return dq_LH + backend.dot(scores(here, other - first), k_LH, precise=precise)

    def later(other, dk_LH):
        there = tokens_of(other)
        sums = blocks.load_sums(decays, there, x.keys)
        meeting = before(decays, here, other)
        q_LH = blocks.load_rows(x.q_BTNH, there, x.keys).astype(jnp.float32)
        q_LH = (q_LH * blocks.weight(sums, meeting)).astype(dtype)
        scores_LL = scores(there, number - first)
        part_LH = backend.transposed_dot(scores_LL, q_LH, precise=precise)
        return dk_LH + part_LH * blocks.weight(meeting, own)

    zeros_LH = jnp.zeros(own.coarse.shape, jnp.float32)
    dq_LH = jax.lax.fori_loop(first, number, earlier, zeros_LH)
    dq_LH *= blocks.weight(own, start)
    end = first + x.chunk // SUB_BLOCK
    return dq_LH, jax.lax.fori_loop(number + 1, end, later, zeros_LH)


def _inside(x: _Operands, here, own, carry):
    """Returns dq and dk with what the sub-block's tokens take from each other."""
    tokens_L = jnp.arange(SUB_BLOCK, dtype=jnp.int32)
    first_column = jax.lax.rem(here.number * SUB_BLOCK, jnp.int32(x.chunk))

    def load(ref, token, exists):
        row_1H = blocks.load_row(ref, here, token, x.keys, exists)
        return row_1H.astype(jnp.float32)

    def scores(row, column):
        index = (here.batch, here.head, row, first_column + column)
        found_L = backend.load(x.tangents.dscores_BNTC, index)
        return found_L.astype(jnp.float32)[:, None]

    def token(r, carry):
        dq_LH, dk_LH = carry
        number = here.number * SUB_BLOCK + r
        sums = blocks.sums_at(x.decays, here, number, x.keys, x.sizes)
        exists = None if here.valid_C is None else number < x.sizes.T
        there = blocks.existing(number, x.sizes)
        later_L1, earlier_L1 = (tokens_L > r)[:, None], (tokens_L < r)[:, None]
        k_1H, q_1H = load(x.k_BTNH, there, exists), load(x.q_BTNH, there, exists)
        dq_LH += scores(here.tokens_C, r) * blocks.weight(own, sums, later_L1) * k_1H
        dk_LH += scores(number, tokens_L) * blocks.weight(sums, own, earlier_L1) * q_1H
        return dq_LH, dk_LH

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(SUB_BLOCK), token, carry)
