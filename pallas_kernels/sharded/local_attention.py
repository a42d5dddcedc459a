"""Attention whose tokens are cut over shards: windows by their edges, all by a ring."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.backend import is_interpreting, multiplies_in_full
from pallas_kernels.local_attention import (
    Past,
    Preparation,
    local_attention,
    prepared,
)
from pallas_kernels.local_attention.part import Part
from pallas_kernels.sharded.prefix import from_left, shards
from pallas_kernels.sharded.ring import Ring, ring_attention


def local_attention_over(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    /,
    *,
    axis: str,
    window: int | jax.Array | None,
    largest_window: int | None = None,
    segment_ids: jax.Array | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    preparation: Preparation | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Returns out_BTNH of the tokens of one shard, inside of jax.shard_map over `axis`.

    The shards' tokens one after the other are a sequence, of which `local_attention`
    defines the result. A shard receives the W - 1 tokens before its own, from as many
    neighbours as have them; without a window, keys go around the ring. For a traced
    window W is `largest_window`.

    Raises:
      ValueError: a traced window without `largest_window`.
    """
    pieces, tokens = shards(axis), q_BTNH.shape[1]
    before = min(_reach(window, largest_window) - 1, (pieces - 1) * tokens)
    if window is None and pieces > 1:
        precise = multiplies_in_full(precision)
        part = Part(softcap, precise, implementation, is_interpreting())
        q_BTNH = prepared(q_BTNH, preparation)
        arrays = (q_BTNH, k_BTKH, v_BTKH, _ids(segment_ids, q_BTNH), sinks)
        return ring_attention(*arrays, ring=Ring(axis, pieces, part))
    past = None
    if before > 0:
        segment_ids = _ids(segment_ids, q_BTNH)
        past = _past((k_BTKH, v_BTKH, segment_ids), axis, before)
    return local_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        window=window,
        segment_ids=segment_ids,
        softcap=softcap,
        sinks=sinks,
        past=past,
        preparation=preparation,
        precision=precision,
        implementation=implementation,
    )


def _ids(segment_ids: jax.Array | None, q_BTNH: jax.Array) -> jax.Array:
    """Returns the segment ids of tokens, int32; None is one segment."""
    if segment_ids is None:
        return jnp.zeros(q_BTNH.shape[:2], jnp.int32)
    return segment_ids.astype(jnp.int32)


def _reach(window: int | jax.Array | None, largest_window: int | None) -> int:
    """Returns the most tokens that a query reads; raises ValueError where none knows.

    A window of None has no edge that crosses: a single shard, or a ring.
    """
    if window is None:
        return 1
    if isinstance(window, int | np.integer):
        return int(window)
    if largest_window is None:
        raise ValueError(
            "local_attention over shards of a sequence wants largest_window where the "
            "window is traced: so many tokens cross; got None."
        )
    return largest_window


def _past(keys: tuple[jax.Array, ...], axis: str, before: int) -> Past:
    """Returns the `before` tokens to the left of a shard, segment -1 where none are."""
    tokens = keys[0].shape[1]
    pieces = []
    for hops in range(1, -(-before // tokens) + 1):
        count = min(tokens, before - (hops - 1) * tokens)
        last = jax.tree.map(lambda x, n=count: x[:, tokens - n :], keys)
        k_BPKH, v_BPKH, ids_BP = from_left(last, axis=axis, hops=hops)
        exists = jax.lax.axis_index(axis) >= hops
        pieces.append((k_BPKH, v_BPKH, jnp.where(exists, ids_BP, -1)))
    return Past(*(jnp.concatenate(x, axis=1) for x in zip(*pieces[::-1], strict=True)))
