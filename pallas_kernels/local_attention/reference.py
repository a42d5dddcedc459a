"""The definition of windowed attention: every score stands in memory."""

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def visible_pairs(
    query_positions_BT: jax.Array,
    key_positions_BS: jax.Array,
    query_segments_BT: jax.Array | None,
    key_segments_BS: jax.Array | None,
    /,
    *,
    window: int | jax.Array | None,
) -> jax.Array:
    """Returns which key each query reads, as booleans of shape (B or 1, T, S).

    Positions are of shapes (B or 1, T) and (B or 1, S), in any order. A query at
    position t reads the key at position s when 0 <= t - s < window, both are in the
    same segment, and the key's segment id is not negative.
    """
    distance_BTS = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    visible_BTS = distance_BTS >= 0
    if window is not None:
        visible_BTS &= distance_BTS < window
    if query_segments_BT is not None and key_segments_BS is not None:
        same_BTS = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
        visible_BTS = visible_BTS & same_BTS & (key_segments_BS >= 0)[:, None, :]
    return visible_BTS


def local_attention_reference(
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
    positions: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(H), over the visible keys) v, of shape BTNH.

    Query t stands at the key position S - T + t, unless `positions` says where queries
    and keys stand, as `visible_pairs` takes them. A soft-cap c turns a logit x into
    c tanh(x / c); a sink adds exp(sink) to its head's normaliser and no value. A query
    that sees nothing returns zeros.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    dtype = accumulation_dtype(q_BTNH.dtype)
    q_BTKGH = q_BTNH.astype(dtype).reshape(B, T, K, N // K, H)
    logits_BKGTS = (
        jnp.einsum(
            "btkgh,bskh->bkgts", q_BTKGH, k_BSKH.astype(dtype), precision="highest"
        )
        * H**-0.5
    )
    if softcap is not None:
        logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
    if positions is None:
        key_positions_1S = jnp.arange(S, dtype=jnp.int32)[None]
        query_positions_1T = jnp.arange(T, dtype=jnp.int32)[None] + (S - T)
        positions = query_positions_1T, key_positions_1S
    visible_BTS = visible_pairs(
        *positions, query_segments_BT, key_segments_BS, window=window
    )
    sinks_1KG1 = None
    if sinks_N is not None:
        sinks_1KG1 = sinks_N.astype(dtype).reshape(1, K, N // K, 1)
    weights_BKGTS = _softmax(logits_BKGTS, visible_BTS[:, None, None], sinks_1KG1)
    out_BTKGH = jnp.einsum(
        "bkgts,bskh->btkgh", weights_BKGTS, v_BSKH.astype(dtype), precision="highest"
    )
    return out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)


def _softmax(logits_BKGTS, visible_B11TS, sinks_1KG1):
    """Returns the weights of the visible keys, beside the sink; all zero where none."""
    logits_BKGTS = jnp.where(visible_B11TS, logits_BKGTS, -1e30)
    peak_BKGT = jnp.max(logits_BKGTS, axis=-1)
    if sinks_1KG1 is not None:
        peak_BKGT = jnp.maximum(peak_BKGT, sinks_1KG1)
    shifted_BKGTS = logits_BKGTS - peak_BKGT[..., None]
    weights_BKGTS = jnp.where(visible_B11TS, jnp.exp(shifted_BKGTS), 0.0)
    total_BKGT = jnp.sum(weights_BKGTS, axis=-1)
    if sinks_1KG1 is not None:
        total_BKGT += jnp.exp(sinks_1KG1 - peak_BKGT)
    return weights_BKGTS / jnp.where(total_BKGT > 0, total_BKGT, 1.0)[..., None]
