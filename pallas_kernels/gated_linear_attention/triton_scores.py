"""What a chunk's tokens read of each other, as a Pallas kernel for GPUs.

A program owns a sub-block of 16 tokens of one head, and loops over blocks of key
channels. Sub-blocks before it in the chunk meet it at its start, in products on the
tensor cores; the tokens of its own are weighted one column at a time. No exponent is
above zero (see channel_decay.py).
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


class Scores(NamedTuple):
    """What follows from queries, keys and decays.

    - `scores_BNTC`: scale sum_h q_th k_sh exp(b_th - b_sh) of token t and the chunk's
      token s <= t, else 0; T' tokens are whole chunks;
    - `reads_BTNH`: scale q_t exp(b_t), which reads the memory before the chunk;
    - `writes_BTNH`: k_s exp(b_C - b_s), which goes into the memory after the chunk.
    """

    scores_BNTC: Any
    reads_BTNH: Any
    writes_BTNH: Any


def scores(q_BTNH, k_BTNH, decays: Decays, sizes: Sizes, tile: Tile, chunk: int):
    """Returns the Scores of all chunks, in the dtype of q."""
    sub_blocks = pl.cdiv(sizes.T, chunk) * (chunk // SUB_BLOCK)
    B, T, N, H = sizes.B, sizes.T, sizes.N, sizes.H
    tokens = backend.Output((B, T, N, H), q_BTNH.dtype)
    found = backend.call(
        partial(_kernel, sizes=sizes, tile=tile.within(sizes), chunk=chunk),
        (q_BTNH, k_BTNH, decays),
        outputs=[
            backend.Output((B, N, sub_blocks * SUB_BLOCK, chunk), q_BTNH.dtype),
            tokens,
            tokens,
        ],
        grid=(sub_blocks, N, B),
        warps=tile.warps,
        stages=tile.stages,
        name="gated_linear_attention_scores",
        interpret=sizes.interpret,
    )
    return Scores(*found)


class _Operands(NamedTuple):
    """The arrays of the kernel, and what it knows at compile time."""

    q_BTNH: Any
    k_BTNH: Any
    decays: Decays
    sizes: Sizes
    width: int  # of a block of key channels
    chunk: int

    def over_channels(self, body, carry):
        """Returns what `body(key channels, carry)` has made of all channels."""
        count = pl.cdiv(self.sizes.H, self.width)

        def block(number, carry):
            first = number * self.width
            return body(columns_of(first, self.width, self.sizes.H), carry)

        return jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), block, carry)

    def queries(self, here, keys):
        """Returns the scaled queries of a sub-block, in float32."""
        q_LH = blocks.load_rows(self.q_BTNH, here, keys).astype(jnp.float32)
        return q_LH * self.sizes.rules.scale


def _kernel(q_BTNH, k_BTNH, decays, *outputs, sizes, tile, chunk):
    out = Scores(*outputs)
    number, head, batch = (pl.program_id(axis) for axis in range(3))
    first = blocks.first_sub_block(number, chunk)
    here = blocks.tokens_of(batch, head, number, SUB_BLOCK, sizes, chunk)
    x = _Operands(q_BTNH, k_BTNH, decays, sizes, tile.keys, chunk)
    zeros_LL = jnp.zeros((SUB_BLOCK, SUB_BLOCK), jnp.float32)

    def store(other, scores_LL):
        index = blocks.tile_index(here, (other - first) * SUB_BLOCK, SUB_BLOCK)
        backend.store(out.scores_BNTC, index, scores_LL)

    def earlier(other, carry):
        there = blocks.tokens_of(batch, head, other, SUB_BLOCK, sizes, chunk)
        store(other, x.over_channels(partial(_across, x, here, there), zeros_LL))
        return carry

    def later(other, carry):
        store(other, zeros_LL)
        return carry

    none = jnp.int32(0)
    jax.lax.fori_loop(first, number, earlier, none)
    jax.lax.fori_loop(number + 1, first + chunk // SUB_BLOCK, later, none)
    store(number, x.over_channels(partial(_own, x, here, out), zeros_LL))


def _across(x: _Operands, here, there, keys, scores_LL):
    """Returns the scores of an earlier sub-block with what these channels add."""
    own = blocks.load_sums(x.decays, here, keys)
    start = blocks.sums_before(x.decays, here, here.number, keys, x.sizes, x.chunk)
    q_LH = x.queries(here, keys) * blocks.weight(own, start)
    sums = blocks.load_sums(x.decays, there, keys)
    k_LH = blocks.load_rows(x.k_BTNH, there, keys).astype(jnp.float32)
    k_LH = (k_LH * blocks.weight(start, sums)).astype(x.k_BTNH.dtype)
    q_LH, precise = q_LH.astype(x.q_BTNH.dtype), x.sizes.rules.precise
    return scores_LL + backend.dot_transposed(q_LH, k_LH, precise=precise)


def _own(x: _Operands, here, out: Scores, keys, scores_LL):
    """Returns the scores between the sub-block's tokens with what these channels add;
    writes their `reads` and `writes`."""
    q_LH, own = x.queries(here, keys), blocks.load_sums(x.decays, here, keys)
    store_tokens(out.reads_BTNH, here, keys, q_LH * blocks.weight(own))
    end = blocks.first_sub_block(here.number, x.chunk) * SUB_BLOCK + x.chunk - 1
    end = blocks.sums_at(x.decays, here, end, keys, x.sizes)
    k_LH = blocks.load_rows(x.k_BTNH, here, keys).astype(jnp.float32)
    store_tokens(out.writes_BTNH, here, keys, k_LH * blocks.weight(end, own))
    tokens_L = jnp.arange(SUB_BLOCK, dtype=jnp.int32)

    def column(s, scores_LL):
        token = here.number * SUB_BLOCK + s
        sums = blocks.sums_at(x.decays, here, token, keys, x.sizes)
        exists = None if here.valid_C is None else token < x.sizes.T
        token = blocks.existing(token, x.sizes)
        k_1H = blocks.load_row(x.k_BTNH, here, token, keys, exists).astype(jnp.float32)
        seen_L1 = (tokens_L >= s)[:, None]
        read_L = jnp.sum(q_LH * (k_1H * blocks.weight(own, sums, seen_L1)), axis=1)
        return scores_LL + jnp.where((tokens_L == s)[None, :], read_L[:, None], 0.0)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(SUB_BLOCK), column, scores_LL)
