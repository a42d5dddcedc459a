"""Windowed attention as Pallas kernels for GPUs: the backward pass.

Two kernels, without atomics, so that two runs are bitwise equal. `dq`: a program owns a
block of queries, as in the forward pass. `dk` and `dv`: a program owns a block of keys
and visits the queries that read it, all heads of the group in the rows of one matmul;
its scores are transposed, keys by queries, so that no product takes a transposed one.
Both compute the weights again from the saved log-sum-exp (Dao et al. 2022,
arXiv:2205.14135, algorithm 4).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.local_attention import queries
from pallas_kernels.local_attention import rows as shared
from pallas_kernels.local_attention.rows import LOG2_E, Inputs, Sizes
from pallas_kernels.local_attention.tiles import Tile, Tiles
from pallas_kernels.local_attention.visits import (
    key_extents,
    query_extents,
    visiting_queries,
)

NO_QUERY = 1e30  # a log-sum-exp under which every weight is zero


def backward(
    inputs: Inputs,
    out_BTNH: jax.Array,
    lse_BTN: jax.Array,
    dout_BTNH: jax.Array,
    sizes: Sizes,
    tiles: Tiles,
    /,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Returns dq_BTNH, dk_BSKH, dv_BSKH and, in float32, dsinks_N and the dscale_H of
    the queries' norm (None without)."""
    dq_BTNH, mean_BTN, *preparation = query_gradient(
        inputs, out_BTNH, lse_BTN, dout_BTNH, sizes, tiles.dq
    )
    dscale_H = None
    if inputs.turns is not None:
        q_BTNH, *dscales_BKIH = preparation
        inputs = inputs._replace(q_BTNH=q_BTNH, turns=None)
        dscale_H = jnp.sum(dscales_BKIH[0], axis=(0, 1, 2)) if dscales_BKIH else None
    dk_BSKH, dv_BSKH = key_gradients(
        inputs, lse_BTN, mean_BTN, dout_BTNH, sizes, tiles.dkv
    )
    dsinks_N = None
    if inputs.sinks_N is not None:
        share_BTN = jnp.exp2((LOG2_E * inputs.sinks_N)[None, None] - lse_BTN)
        dsinks_N = -jnp.sum(share_BTN * mean_BTN, axis=(0, 1))
    return dq_BTNH, dk_BSKH, dv_BSKH, dsinks_N, dscale_H


def query_gradient(inputs, out_BTNH, lse_BTN, dout_BTNH, sizes: Sizes, tile: Tile):
    """Returns dq_BTNH and, per query, sum_s p_ts dp_ts = out . dout, of shape BTN.

    Where the kernels prepare queries, then the prepared ones, of shape BTNH, and where
    they norm them, what each program adds to the scale's gradient, of shape BKIH.
    """
    extents_BI2 = None
    if inputs.query_segments_BT is not None:
        segments = inputs.query_segments_BT, inputs.key_segments_BS
        extents_BI2 = query_extents(
            *segments, rows=tile.rows, group=sizes.G, offset=sizes.offset
        )
    blocks = pl.cdiv(sizes.T * sizes.G, tile.rows)
    like_q = backend.Output(inputs.q_BTNH.shape, inputs.q_BTNH.dtype)
    outputs = [like_q, backend.Output(lse_BTN.shape, jnp.float32)]
    if inputs.turns is not None:
        shares = backend.Output((sizes.B, sizes.K, blocks, sizes.H), jnp.float32)
        outputs += [like_q] if inputs.turns[-1] is None else [like_q, shares]
    return backend.call(
        partial(_dq_kernel, sizes=sizes, tile=tile),
        (inputs, extents_BI2, out_BTNH, lse_BTN, dout_BTNH),
        outputs=outputs,
        grid=(blocks, sizes.K, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="local_attention_dq",
        interpret=sizes.interpret,
    )


def _dq_kernel(
    inputs, extents_BI2, out_BTNH, lse_BTN, dout_BTNH, *outputs, sizes, tile
):
    dq_BTNH, mean_BTN, *preparation = outputs
    rows, kv_head, visits = shared.query_visits(inputs, extents_BI2, sizes, tile)
    q = queries.load_queries(inputs, rows, sizes)
    if preparation:
        queries.store(preparation[0], rows, q, sizes)
    out_RH = shared.load_rows(out_BTNH, rows, sizes)
    dout_RH = shared.load_rows(dout_BTNH, rows, sizes)
    lse_R = shared.load_statistic(lse_BTN, rows, NO_QUERY)
    mean_R = jnp.sum(out_RH.astype(jnp.float32) * dout_RH.astype(jnp.float32), axis=1)
    shared.store_statistic(mean_BTN, rows, mean_R)

    def body(j, dq, *, edge):
        first = visits.first + j * tile.keys
        keys = shared.key_block(
            rows.batch, first, kv_head, sizes, tile.keys, ragged=edge
        )
        k = queries.load_keys(inputs, keys, sizes)
        if sizes.pieces > 1:
            q_k = inputs.q_BTNH, rows, inputs.k_BSKH, keys
            products_RC = shared.products(*q_k, sizes)
            dweights_RC = shared.products(dout_BTNH, rows, inputs.v_BSKH, keys, sizes)
        else:
            v_CH = shared.load_keys(inputs.v_BSKH, keys, sizes)
            products_RC = queries.products(q, k, sizes)
            dweights_RC = backend.dot_transposed(dout_RH, v_CH, precise=sizes.precise)
        logits_RC = shared.scaled(products_RC, sizes)
        slope = shared.slope(logits_RC, sizes)
        if edge:
            logits_RC = shared.mask(logits_RC, inputs, rows, keys, transposed=False)
        weights_RC = jnp.exp2(logits_RC - lse_R[:, None])
        dlogits_RC = weights_RC * (dweights_RC - mean_R[:, None]) * slope
        dlogits_RC = dlogits_RC.astype(inputs.k_BSKH.dtype)
        return tuple(
            sum_RH + backend.dot(dlogits_RC, k_CH, precise=sizes.precise)
            for sum_RH, k_CH in zip(dq, k, strict=True)
        )

    columns = shared.columns(sizes, (0, sizes.parts))[0].shape[1]
    empty = jnp.zeros((tile.rows, columns), jnp.float32)
    dq = shared.phases(visits, body, (empty,) * sizes.parts)
    dq = tuple(sum_RH * sizes.H**-0.5 for sum_RH in dq)
    dq, dscales = queries.raw_gradient(inputs, rows, dq, sizes)
    queries.store(dq_BTNH, rows, dq, sizes)
    if dscales is not None:
        index = (rows.batch, kv_head, pl.program_id(0))
        queries.store_scale_gradient(preparation[1], index, dscales, sizes)


def key_gradients(inputs, lse_BTN, mean_BTN, dout_BTNH, sizes: Sizes, tile: Tile):
    """Returns dk_BSKH and dv_BSKH."""
    extents_BJ2 = None
    if inputs.query_segments_BT is not None:
        segments = inputs.query_segments_BT, inputs.key_segments_BS
        extents_BJ2 = key_extents(*segments, block=tile.keys, offset=sizes.offset)
    return backend.call(
        partial(_dkv_kernel, sizes=sizes, tile=tile),
        (inputs, extents_BJ2, lse_BTN, mean_BTN, dout_BTNH),
        outputs=[
            backend.Output(inputs.k_BSKH.shape, inputs.k_BSKH.dtype),
            backend.Output(inputs.v_BSKH.shape, inputs.v_BSKH.dtype),
        ],
        grid=(pl.cdiv(sizes.S, tile.keys), sizes.K, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="local_attention_dkv",
        interpret=sizes.interpret,
    )


def _dkv_kernel(
    inputs, extents_BJ2, lse_BTN, mean_BTN, dout_BTNH, dk_BSKH, dv_BSKH, *, sizes, tile
):
    block, kv_head, batch = (pl.program_id(axis) for axis in range(3))
    first = block * tile.keys
    keys = shared.key_block(batch, first, kv_head, sizes, tile.keys, ragged=True)
    visits = _key_visits(inputs, extents_BJ2, sizes, tile)
    k_CH = shared.load_keys(inputs.k_BSKH, keys, sizes)
    v_CH = shared.load_keys(inputs.v_BSKH, keys, sizes)
    first_row = (visits.first - sizes.offset) * sizes.G

    def body(j, carry, *, edge):
        dk_CH, dv_CH = carry
        start = first_row + j * tile.rows
        rows = shared.query_rows(batch, start, kv_head, sizes, tile.rows)
        q_RH = shared.load_rows(inputs.q_BTNH, rows, sizes)
        lse_R = shared.load_statistic(lse_BTN, rows, NO_QUERY)
        logits_CR = shared.logits(k_CH, q_RH, sizes)
        slope = shared.slope(logits_CR, sizes)
        if edge:
            logits_CR = shared.mask(logits_CR, inputs, rows, keys, transposed=True)
        weights_CR = jnp.exp2(logits_CR - lse_R[None, :])
        dout_RH = shared.load_rows(dout_BTNH, rows, sizes)
        dv_CH += backend.dot(
            weights_CR.astype(dout_RH.dtype), dout_RH, precise=sizes.precise
        )
        mean_R = shared.load_statistic(mean_BTN, rows, 0.0)
        dweights_CR = backend.dot_transposed(v_CH, dout_RH, precise=sizes.precise)
        dlogits_CR = weights_CR * (dweights_CR - mean_R[None, :]) * slope
        dk_CH += backend.dot(dlogits_CR.astype(q_RH.dtype), q_RH, precise=sizes.precise)
        return dk_CH, dv_CH

    zeros_CH = jnp.zeros((tile.keys, sizes.width), jnp.float32)
    dk_CH, dv_CH = shared.phases(visits, body, (zeros_CH, zeros_CH))
    shared.store_keys(dk_BSKH, keys, dk_CH * sizes.H**-0.5, sizes)
    shared.store_keys(dv_BSKH, keys, dv_CH, sizes)


def _key_visits(inputs, extents_BJ2, sizes, tile):
    """Returns this program's visits to queries."""
    block, _, batch = (pl.program_id(axis) for axis in range(3))
    segment = None
    if extents_BJ2 is not None:
        segment = [backend.load(extents_BJ2, (batch, block, end)) for end in (0, 1)]
    first = block * tile.keys
    return visiting_queries(
        (first, jnp.minimum(first + tile.keys, sizes.S) - 1),
        inputs.window_1[0],
        (sizes.offset, sizes.offset + sizes.T),
        tile.rows,
        group=sizes.G,
        segment=segment,
    )
