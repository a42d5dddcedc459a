"""Windowed attention block by block, in plain JAX: time O(T W), memory O(T).

Queries and keys are cut into blocks of C tokens. A scan over the query blocks visits
only the key blocks that the window leaves visible, with a loop whose bounds follow the
window at run time, and keeps a running softmax (Milakov & Gimelshein 2018,
arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). The backward pass visits the same
blocks and computes the weights again from the saved log-sum-exp.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.backend import alike
from pallas_kernels.checks import accumulation_dtype

BLOCK = 64  # tokens; the most that a query or key block holds
MASKED = -1e30  # a logit below every real one, and finite: differences stay numbers


class _Blocks(NamedTuple):
    """The arguments cut into blocks: I query blocks, J key blocks, of C tokens each.

    The queries of a group share a block's rows: R = G * C. Segment ids are None or
    cover the padding too, with ids that match nothing.
    """

    q_IBKRH: jax.Array
    k_JBKCH: jax.Array
    v_JBKCH: jax.Array
    query_segments_IBC: jax.Array | None
    key_segments_JBC: jax.Array | None


class _Layout(NamedTuple):
    """Sizes known at trace time; `shift` is the key block of the first query block."""

    block: int
    groups: int
    shift: int
    front: int  # tokens of padding before the first key
    softcap: float | None


def local_attention_chunked(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_segments_BT: jax.Array | None,
    key_segments_BS: jax.Array | None,
    sinks_N: jax.Array | None,
    /,
    *,
    window: int | jax.Array | None,
    softcap: float | None,
) -> jax.Array:
    """Returns the windowed attention of shape BTNH; reference.py defines it."""
    segments = (query_segments_BT, key_segments_BS)
    arguments, layout = _arguments(
        q_BTNH, k_BSKH, v_BSKH, *segments, sinks_N, window, softcap=softcap
    )
    return _of_queries(_attend(*arguments, layout), q_BTNH.shape, layout)


def attention_part_chunked(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    sinks_N: jax.Array | None,
    /,
    *,
    softcap: float | None,
    beyond: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and the log-sum-exp of each query's logits, BTN; part.py."""
    segments = (query_segments_BT, key_segments_BS)
    arguments, layout = _arguments(
        q_BTNH, k_BSKH, v_BSKH, *segments, sinks_N, None, softcap=softcap, beyond=beyond
    )
    out_IBKRH, lse_IBKR = _forward(*arguments, layout)
    lse_BTN1 = _of_queries(lse_IBKR[..., None], (*q_BTNH.shape[:3], 1), layout)
    return _of_queries(out_IBKRH, q_BTNH.shape, layout), lse_BTN1[..., 0]


def attention_part_gradients_chunked(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    sinks_N: jax.Array | None,
    out_BTNH: jax.Array,
    lse_BTN: jax.Array,
    dout_BTNH: jax.Array,
    /,
    *,
    softcap: float | None,
    beyond: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Returns dq_BTNH, dk_BSKH, dv_BSKH and dsinks_N (None without); part.py."""
    segments = (query_segments_BT, key_segments_BS)
    arguments, layout = _arguments(
        q_BTNH, k_BSKH, v_BSKH, *segments, sinks_N, None, softcap=softcap, beyond=beyond
    )
    K = k_BSKH.shape[2]
    out_IBKRH, lse_IBKR1, dout_IBKRH = (
        _query_blocks(x, layout=layout, heads=K)
        for x in (out_BTNH, lse_BTN[..., None], dout_BTNH)
    )
    residuals = (*arguments, out_IBKRH, lse_IBKR1[..., 0])
    dblocks, dsinks_KR, _ = _attend_backward(layout, residuals, dout_IBKRH)
    dsinks_N = None
    if sinks_N is not None:
        dsinks_KGC = dsinks_KR.reshape(K, layout.groups, -1)
        dsinks_N = jnp.sum(dsinks_KGC, axis=-1).reshape(-1)
    return (
        _of_queries(dblocks.q_IBKRH, q_BTNH.shape, layout),
        _of_keys(dblocks.k_JBKCH, k_BSKH.shape, layout),
        _of_keys(dblocks.v_JBKCH, v_BSKH.shape, layout),
        dsinks_N,
    )


def _arguments(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    query_segments_BT,
    key_segments_BS,
    sinks_N,
    window,
    *,
    softcap,
    beyond=0,
):
    """Returns the array arguments of `_attend`, and its layout; the queries stand
    `beyond` tokens further behind the keys than at their end."""
    T, N = q_BTNH.shape[1:3]
    S, K = k_BSKH.shape[1:3]
    block = min(BLOCK, max(T, S))
    offset = S - T + beyond
    front = -offset % block
    layout = _Layout(block, N // K, (offset + front) // block, front, softcap)
    dtype = accumulation_dtype(q_BTNH.dtype)
    blocks = _Blocks(
        _query_blocks(q_BTNH, layout=layout, heads=K),
        _key_blocks(k_BSKH, layout=layout),
        _key_blocks(v_BSKH, layout=layout),
        _segment_blocks(query_segments_BT, layout, front=0, fill=-2),
        _segment_blocks(key_segments_BS, layout, front=front, fill=-1),
    )
    if sinks_N is None:
        sinks_N = jnp.full((N,), -jnp.inf, dtype)
    sinks_KR = jnp.repeat(sinks_N.astype(dtype).reshape(K, N // K), block, axis=1)
    window = jnp.asarray(T + S + beyond if window is None else window, jnp.int32)
    return alike((blocks, sinks_KR, window)), layout


def _of_queries(x_IBKRH, shape, layout):
    """Returns x of query blocks as BTNH of that shape."""
    B, T, N, H = shape
    K = x_IBKRH.shape[2]
    x_IBKGCH = x_IBKRH.reshape(-1, B, K, N // K, layout.block, H)
    return x_IBKGCH.transpose(1, 0, 4, 2, 3, 5).reshape(B, -1, N, H)[:, :T]


def _of_keys(x_JBKCH, shape, layout):
    """Returns x of key blocks as BSKH of that shape."""
    B, S, K, H = shape
    x_BSKH = x_JBKCH.transpose(1, 0, 3, 2, 4).reshape(B, -1, K, H)
    return x_BSKH[:, layout.front : layout.front + S]


def _query_blocks(q_BTNH, *, layout, heads):
    B, T, N, H = q_BTNH.shape
    q_BTNH = jnp.pad(q_BTNH, ((0, 0), (0, -T % layout.block), (0, 0), (0, 0)))
    q_BICKGH = q_BTNH.reshape(B, -1, layout.block, heads, N // heads, H)
    q_IBKGCH = q_BICKGH.transpose(1, 0, 3, 4, 2, 5)
    return q_IBKGCH.reshape(-1, B, heads, layout.groups * layout.block, H)


def _key_blocks(k_BSKH, *, layout):
    B, S, K, H = k_BSKH.shape
    back = -(S + layout.front) % layout.block
    k_BSKH = jnp.pad(k_BSKH, ((0, 0), (layout.front, back), (0, 0), (0, 0)))
    return k_BSKH.reshape(B, -1, layout.block, K, H).transpose(1, 0, 3, 2, 4)


def _segment_blocks(segments_BS, layout, *, front, fill):
    if segments_BS is None:
        return None
    back = -(segments_BS.shape[1] + front) % layout.block
    padding = ((0, 0), (front, back))
    segments_BS = jnp.pad(segments_BS, padding, constant_values=fill)
    return segments_BS.reshape(segments_BS.shape[0], -1, layout.block).swapaxes(0, 1)


def _visible_blocks(i, key_blocks, window, layout):
    """Returns the first and one past the last key block that query block i reads."""
    start = (i + layout.shift) * layout.block
    first = jnp.maximum((start - window + 1) // layout.block, 0)
    return first, jnp.minimum(i + layout.shift + 1, key_blocks)


def _logits(q_BKRH, i, j, query_segments_BC, blocks, window, layout):
    """Returns (logits of shape BKRC, which of them are visible, broadcastable)."""
    C = layout.block
    logits_BKRC = _dot("bkrh,bkch->bkrc", q_BKRH, blocks.k_JBKCH[j])
    logits_BKRC *= q_BKRH.shape[-1] ** -0.5
    if layout.softcap is not None:
        logits_BKRC = layout.softcap * jnp.tanh(logits_BKRC / layout.softcap)
    tokens_C = jnp.arange(C, dtype=jnp.int32)
    query_C = (i + layout.shift) * C + tokens_C
    key_C = j * C + tokens_C
    distance_CC = query_C[:, None] - key_C[None, :]
    visible_BCC = (distance_CC >= 0) & (distance_CC < window)
    visible_BCC = (visible_BCC & (key_C >= layout.front)[None, :])[None]
    if query_segments_BC is not None:
        key_segments_BC = blocks.key_segments_JBC[j]
        same_BCC = query_segments_BC[:, :, None] == key_segments_BC[:, None, :]
        visible_BCC = visible_BCC & same_BCC & (key_segments_BC >= 0)[:, None, :]
    visible_B1RC = jnp.tile(visible_BCC, (1, layout.groups, 1))[:, None]
    return logits_BKRC, visible_B1RC


def _logits_slope(logits_BKRC, width, layout):
    """Returns d logits / d (q . k), from the logits."""
    if layout.softcap is None:
        return width**-0.5
    return width**-0.5 * (1.0 - jnp.square(logits_BKRC / layout.softcap))


def _dot(equation, x, y):
    """Returns the contraction: inputs in the dtype of y, sums in float32 or wider."""
    return jnp.einsum(
        equation,
        x.astype(y.dtype),
        y,
        preferred_element_type=accumulation_dtype(y.dtype),
        precision="highest" if y.dtype != jnp.bfloat16 else None,
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(blocks, sinks_KR, window, layout):
    return _forward(blocks, sinks_KR, window, layout)[0]


def _forward(blocks, sinks_KR, window, layout):
    """Returns (out_IBKRH, the log-sum-exp of every query's logits, of shape IBKR)."""
    dtype = sinks_KR.dtype
    I, B, K, R, H = blocks.q_IBKRH.shape
    sinks_BKR = jnp.broadcast_to(sinks_KR[None], (B, K, R))
    has_sink_BKR = sinks_BKR > MASKED

    def query_block(_, inputs):
        i, q_BKRH, query_segments_BC = inputs

        def key_block(j, carry):
            peak_BKR, total_BKR, sum_BKRH = carry
            logits_BKRC, visible = _logits(
                q_BKRH, i, j, query_segments_BC, blocks, window, layout
            )
            logits_BKRC = jnp.where(visible, logits_BKRC, MASKED)
            new_peak_BKR = jnp.maximum(peak_BKR, jnp.max(logits_BKRC, axis=-1))
            shifted_BKRC = logits_BKRC - new_peak_BKR[..., None]
            weights_BKRC = jnp.where(visible, jnp.exp(shifted_BKRC), 0.0)
            rescale_BKR = jnp.exp(peak_BKR - new_peak_BKR)
            total_BKR = total_BKR * rescale_BKR + jnp.sum(weights_BKRC, axis=-1)
            read_BKRH = _dot("bkrc,bkch->bkrh", weights_BKRC, blocks.v_JBKCH[j])
            return (
                new_peak_BKR,
                total_BKR,
                sum_BKRH * rescale_BKR[..., None] + read_BKRH,
            )

        first, last = _visible_blocks(i, len(blocks.k_JBKCH), window, layout)
        empty = (
            jnp.maximum(sinks_BKR, MASKED),
            has_sink_BKR.astype(dtype),
            jnp.zeros((B, K, R, H), dtype),
        )
        empty = alike((*empty, window))[:-1]
        peak_BKR, total_BKR, sum_BKRH = jax.lax.fori_loop(first, last, key_block, empty)
        total_BKR = jnp.where(total_BKR > 0, total_BKR, 1.0)
        out_BKRH = (sum_BKRH / total_BKR[..., None]).astype(q_BKRH.dtype)
        return None, (out_BKRH, peak_BKR + jnp.log(total_BKR))

    inputs = (jnp.arange(I, dtype=jnp.int32), blocks.q_IBKRH, blocks.query_segments_IBC)
    _, (out_IBKRH, lse_IBKR) = jax.lax.scan(query_block, None, inputs)
    return out_IBKRH, lse_IBKR


def _attend_forward(blocks, sinks_KR, window, layout):
    out_IBKRH, lse_IBKR = _forward(blocks, sinks_KR, window, layout)
    return out_IBKRH, (blocks, sinks_KR, window, out_IBKRH, lse_IBKR)


def _attend_backward(layout, residuals, dout_IBKRH):
    """Returns the exact cotangents of the blocks and the sinks."""
    blocks, sinks_KR, window, out_IBKRH, lse_IBKR = residuals
    dtype = sinks_KR.dtype
    # sum_s p_ts dp_ts of the softmax, without the probabilities.
    mean_IBKR = jnp.sum(out_IBKRH.astype(dtype) * dout_IBKRH.astype(dtype), axis=-1)
    share_IBKR = jnp.exp(sinks_KR[None, None] - lse_IBKR)
    dsinks_KR = -jnp.sum(share_IBKR * mean_IBKR, axis=(0, 1))

    def query_block(carry, inputs):
        i, q_BKRH, query_segments_BC, dout_BKRH, mean_BKR, lse_BKR = inputs

        def key_block(j, carry):
            dq_BKRH, dk_JBKCH, dv_JBKCH = carry
            logits_BKRC, visible = _logits(
                q_BKRH, i, j, query_segments_BC, blocks, window, layout
            )
            shifted_BKRC = jnp.where(visible, logits_BKRC - lse_BKR[..., None], MASKED)
            weights_BKRC = jnp.exp(shifted_BKRC)
            dweights_BKRC = _dot("bkrh,bkch->bkrc", dout_BKRH, blocks.v_JBKCH[j])
            dlogits_BKRC = weights_BKRC * (dweights_BKRC - mean_BKR[..., None])
            dlogits_BKRC *= _logits_slope(logits_BKRC, q_BKRH.shape[-1], layout)
            dv_BKCH = _dot("bkrc,bkrh->bkch", weights_BKRC, dout_BKRH)
            dk_BKCH = _dot("bkrc,bkrh->bkch", dlogits_BKRC, q_BKRH)
            dq_BKRH += _dot("bkrc,bkch->bkrh", dlogits_BKRC, blocks.k_JBKCH[j])
            return dq_BKRH, dk_JBKCH.at[j].add(dk_BKCH), dv_JBKCH.at[j].add(dv_BKCH)

        first, last = _visible_blocks(i, len(blocks.k_JBKCH), window, layout)
        empty = alike((jnp.zeros(q_BKRH.shape, dtype), *carry, window))[:-1]
        dq_BKRH, *carry = jax.lax.fori_loop(first, last, key_block, empty)
        return tuple(carry), dq_BKRH.astype(q_BKRH.dtype)

    order_I = jnp.arange(len(blocks.q_IBKRH), dtype=jnp.int32)
    queries = (order_I, blocks.q_IBKRH, blocks.query_segments_IBC)
    inputs = (*queries, dout_IBKRH, mean_IBKR, lse_IBKR)
    zeros_JBKCH = jnp.zeros(blocks.k_JBKCH.shape, dtype)
    zeros_JBKCH, _ = alike((zeros_JBKCH, window))
    (dk, dv), dq = jax.lax.scan(query_block, (zeros_JBKCH, zeros_JBKCH), inputs)
    k_dtype = blocks.k_JBKCH.dtype
    dblocks = _Blocks(dq, dk.astype(k_dtype), dv.astype(k_dtype), None, None)
    return dblocks, dsinks_KR, None


_attend.defvjp(_attend_forward, _attend_backward)
