"""Windowed attention of a few new tokens over a ring buffer, as a Pallas kernel.

A program owns up to 64 rows of queries of one key/value head and one of the splits of
the tokens that they read ("Flash-Decoding": Dao et al. 2023). The ring is read once, at
the speed of memory; what a split has read is joined with the others' in plain JAX.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.local_attention import rows as shared
from pallas_kernels.local_attention.rows import (
    FLOOR,
    MASKED,
    NOWHERE,
    Keys,
    Rows,
    Sizes,
)
from pallas_kernels.local_attention.tiles import Tile
from pallas_kernels.local_attention.triton import LARGEST_GRID, WIDEST

PROGRAMS = 528  # two waves on 132 processors (H100, H200) that hold two programs each


class Step(NamedTuple):
    """The arrays of a step, or their refs in the kernel; the ring has the new tokens.

    Token number p of a row lies in slot p mod L; `tokens_B` counts the tokens of each
    row, the new ones included. Segment ids and counts are int32.
    """

    window_1: Any
    q_BTNH: Any
    k_BLKH: Any
    v_BLKH: Any
    sinks_N: Any  # float32 or None
    query_segments_BT: Any
    key_segments_BL: Any
    tokens_B: Any


def local_attention_decode(
    step: Step, /, *, softcap: float | None, precise: bool, longest: int
) -> jax.Array:
    """Returns out_BTNH; no query reads more than `longest` tokens back from the newest.

    Raises:
      NotImplementedError: the target is no GPU, or a dtype, head width, number of heads
        or batch that the kernel does not serve.
    """
    B, T, N, H = step.q_BTNH.shape
    L, K = step.k_BLKH.shape[1:3]
    sizes = Sizes(B, T, L, N, K, H, softcap, precise)
    _refuse(sizes, step.q_BTNH.dtype)
    if step.sinks_N is not None:
        step = step._replace(sinks_N=step.sinks_N.astype(jnp.float32))
    tile = decode_tile(sizes, step.q_BTNH.dtype.itemsize)
    row_blocks = pl.cdiv(T * sizes.G, tile.rows)
    splits = split_count(B * K * row_blocks, pl.cdiv(min(longest, L), tile.keys))
    dtype = step.q_BTNH.dtype if splits == 1 else jnp.float32
    out, lse = backend.call(
        partial(_kernel, sizes=sizes, tile=tile, splits=splits),
        (backend.alike(step),),
        outputs=[
            backend.Output((B * splits, T, N, H), dtype),
            backend.Output((B * splits, T, N), jnp.float32),
        ],
        grid=(splits * row_blocks, K, B),
        warps=tile.warps,
        stages=tile.stages,
        name="local_attention_decode",
    )
    if splits == 1:
        return out
    out_BITNH = out.reshape(B, splits, T, N, H)
    return _joined(out_BITNH, lse.reshape(B, splits, T, N)).astype(step.q_BTNH.dtype)


def _refuse(sizes, dtype):
    """Returns nothing; raises NotImplementedError for a call that is not served."""
    backend.refuse_without_gpu()
    B, K, H = sizes.B, sizes.K, sizes.H
    if dtype.itemsize > 4 or H > WIDEST or max(B, K) > LARGEST_GRID:
        raise NotImplementedError(
            f"serves bfloat16, float16 and float32, heads up to {WIDEST} wide, up to "
            f"{LARGEST_GRID} rows of a batch and key/value heads; got {dtype.name}, "
            f"{H}, {B} and {K}."
        )


def decode_tile(sizes: Sizes, itemsize: int, /) -> Tile:
    """Returns the tile for numbers of `itemsize` bytes, which fits the registers.

    A block of keys has 16 KiB at most, so that two programs or more share a processor.
    """
    token = sizes.width * itemsize  # bytes
    rows, keys, warps, stages = 64, 2**14 // token, 4, 3
    if itemsize == 4:
        rows, keys = 16 if sizes.precise else 32, min(32, 2**13 // token)
        if token == 1024:
            rows, warps, stages = (16, 8, 3) if sizes.precise else (16, 4, 2)
    rows = min(rows, max(16, pl.next_power_of_2(sizes.T * sizes.G)))
    return Tile(rows, max(16, min(64, keys)), warps, stages)


def split_count(programs: int, blocks: int, /) -> int:
    """Returns into how many splits the `blocks` that a program reads are cut, so that
    there are about PROGRAMS programs; at least a block is left to each."""
    return max(1, min(blocks, round(PROGRAMS / programs)))


def _kernel(step, out, lse, *, sizes, tile, splits):
    """Writes the splits' outputs, of shape (B * splits, T, N, H), and the log-sum-exp,
    base 2, of their logits; a split that sees nothing writes zeros and about FLOOR."""
    piece, kv_head, batch = (pl.program_id(axis) for axis in range(3))
    row_block = jax.lax.div(piece, jnp.int32(splits))
    split = piece - row_block * splits
    end = backend.load(step.tokens_B, (batch,))
    rows = _query_rows(batch, row_block, kv_head, end - sizes.T, sizes, tile.rows)
    first, count = _visible_tokens(end, row_block, step.window_1[0], sizes, tile.rows)
    q_RH = shared.load_rows(step.q_BTNH, rows, sizes)
    index = (batch, rows.tokens_R)
    own_R = backend.load(step.query_segments_BT, index, rows.valid_R, -1)

    def body(j, softmax):
        order_C = j * tile.keys + jnp.arange(tile.keys, dtype=jnp.int32)
        slots_C = jax.lax.rem(first, jnp.int32(sizes.S)) + order_C
        slots_C = jnp.where(slots_C < sizes.S, slots_C, slots_C - sizes.S)
        keys = Keys(batch, slots_C, kv_head, order_C < count)
        k_CH = shared.load_keys(step.k_BLKH, keys, sizes)
        logits_RC = shared.logits(q_RH, k_CH, sizes)
        ids_C = backend.load(step.key_segments_BL, (batch, slots_C), keys.valid_C, -1)
        distance_RC = rows.positions_R[:, None] - (first + order_C)[None, :]
        visible_RC = (distance_RC >= 0) & (distance_RC < step.window_1[0])
        visible_RC &= (own_R[:, None] == ids_C[None, :]) & (ids_C >= 0)[None, :]
        logits_RC = jnp.where(visible_RC, logits_RC, MASKED)
        v_CH = shared.load_keys(step.v_BLKH, keys, sizes)
        return shared.read(softmax, logits_RC, v_CH, sizes)

    blocks = backend.cdiv(count, tile.keys)
    share = backend.cdiv(blocks, splits)
    stop = jnp.minimum(split * share + share, blocks)
    sinks_R = None
    if step.sinks_N is not None:  # the first split has them
        sinks_R = backend.load(step.sinks_N, (rows.heads_R,), rows.valid_R)
        sinks_R = jnp.where(split == 0, sinks_R, FLOOR)
    softmax = shared.unread(sinks_R, tile.rows, sizes)
    softmax = jax.lax.fori_loop(split * share, stop, body, softmax)
    out_RH, lse_R = shared.finished(softmax)
    rows = rows._replace(batch=batch * splits + split)
    shared.store_rows(out, rows, out_RH, sizes)
    shared.store_statistic(lse, rows, lse_R)


def _query_rows(batch, row_block, kv_head, start, sizes, rows):
    """Returns a block of the rows of a key/value head's group: T tokens of G heads."""
    row_R = row_block * rows + jnp.arange(rows, dtype=jnp.int32)
    tokens_R = jax.lax.div(row_R, jnp.int32(sizes.G))
    heads_R = kv_head * sizes.G + row_R - tokens_R * sizes.G
    valid_R = tokens_R < sizes.T
    positions_R = jnp.where(valid_R, start + tokens_R, NOWHERE)
    return Rows(batch, tokens_R, heads_R, valid_R, positions_R)


def _visible_tokens(end, row_block, window, sizes, rows):
    """Returns the number of the first token that a block of rows may read, and how many
    it may read from there on. The ring holds the last L tokens before `end`."""
    token = jax.lax.div(row_block * rows, jnp.int32(sizes.G))
    last = jax.lax.div(row_block * rows + (rows - 1), jnp.int32(sizes.G))
    first = jnp.maximum(end - sizes.T + token - window + 1, end - sizes.S)
    first = jnp.maximum(first, 0)
    return first, end - sizes.T + jnp.minimum(last, sizes.T - 1) + 1 - first


def _joined(out_BITNH, lse_BITN):
    """Returns the softmax over all splits from those over each."""
    weights_BITN = jnp.exp2(lse_BITN - jnp.max(lse_BITN, axis=1, keepdims=True))
    weights_BITN = weights_BITN / jnp.sum(weights_BITN, axis=1, keepdims=True)
    return jnp.sum(out_BITNH * weights_BITN[..., None], axis=1)
