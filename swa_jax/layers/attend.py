"""Softmax attention over a window whose past is a ring buffer."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.local_attention import Past, Preparation, prepared
from pallas_kernels.local_attention.step import (
    NEW_TOKENS,
    WindowCache,
    append_tokens,
    in_order,
)
from pallas_kernels.sharded import local_attention, local_attention_step


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    state: WindowCache | None,
    /,
    *,
    segment_ids: jax.Array | None,
    preparation: Preparation | None = None,
    **options: Any,
) -> tuple[jax.Array, WindowCache | None]:
    """Returns out_BTNH of the next tokens, and the cache that has them too.

    `preparation` is that of q; keys come prepared, as the cache has them.

    Up to NEW_TOKENS tokens are read in the ring; more of them from the ring in order
    and the call's own. `options` are those of `local_attention`.
    """
    tokens = (k_BTKH, v_BTKH)
    if state is None:
        options |= {"segment_ids": segment_ids, "preparation": preparation}
        return local_attention(q_BTNH, *tokens, **options), None
    if segment_ids is None:
        segment_ids = jnp.zeros(q_BTNH.shape[:2], jnp.int32)
    options["segment_ids"] = segment_ids
    if q_BTNH.shape[1] <= NEW_TOKENS:
        q_BTNH = prepared(q_BTNH, preparation)
        return local_attention_step(q_BTNH, *tokens, state, **options)
    options |= {"past": Past(*in_order(state)), "preparation": preparation}
    out_BTNH = local_attention(q_BTNH, *tokens, **options)
    return out_BTNH, append_tokens(state, k_BTKH, v_BTKH, segment_ids)


def served_window(cache: WindowCache, /) -> int:
    """Returns the largest window, in tokens, that a cache serves for certain; its
    arrays may have leading axes."""
    return cache.k_BLKH.shape[-3] + 1 - NEW_TOKENS
