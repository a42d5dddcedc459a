"""Full causal attention over a ring of shards: keys travel, queries stay.

Shard i holds the tokens after those of shard i - 1. In step r it reads the keys of
shard i - r, handed on by its left neighbour, so that no shard holds more than its own
keys and one other's. The backward pass sends keys and their gradients around once more
(Liu et al. 2023, arXiv:2310.01889). A shard whose turn brings keys from after its own
waits: the work is that of all pairs, twice that of the visible ones.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.backend import alike
from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.local_attention.part import (
    Part,
    attention_part,
    attention_part_gradients,
    joined,
)


class Ring(NamedTuple):
    """The axis of the mesh, its number of shards, and how a part is computed."""

    axis: str
    shards: int
    part: Part


def ring_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    sinks_N: jax.Array | None,
    /,
    *,
    ring: Ring,
) -> jax.Array:
    """Returns the full causal attention of each query over the tokens of all shards up
    to its own, out_BTNH; local_attention with a window of None defines it."""
    tokens = alike((q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, sinks_N))
    return _attend(*tokens, ring)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, sinks_N, ring):
    return _forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, sinks_N, ring)[0]


def _forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, sinks_N, ring):
    tokens = (q_BTNH, k_BTKH, v_BTKH)
    read = attention_part(
        *tokens, segments_BT, segments_BT, sinks_N, part=ring.part, beyond=0
    )
    wide = accumulation_dtype(q_BTNH.dtype)
    keys = (k_BTKH, v_BTKH, segments_BT)

    def step(carry, turn):
        keys, read = carry
        k_BTKH, v_BTKH, key_segments_BT = keys = _handed_on(keys, ring)
        other = attention_part(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            segments_BT,
            _seen(key_segments_BT, turn, ring),
            None,
            part=ring.part,
            beyond=q_BTNH.shape[1],
        )
        return (keys, joined(read, other)), None

    read = (read[0].astype(wide), read[1].astype(wide))
    (_, (out_BTNH, lse_BTN)), _ = jax.lax.scan(step, (keys, read), _turns(ring))
    out_BTNH = out_BTNH.astype(q_BTNH.dtype)
    return out_BTNH, (*keys, q_BTNH, sinks_N, out_BTNH, lse_BTN)


def _handed_on(tree, ring):
    """Returns the tree of the left neighbour, whose own is the last shard's on the
    first one."""
    pairs = [(shard, (shard + 1) % ring.shards) for shard in range(ring.shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axis, pairs), tree)


def _turns(ring):
    return jnp.arange(1, ring.shards, dtype=jnp.int32)


def _seen(key_segments_BT, turn, ring):
    """Returns the segments of the keys of `turn` shards to the left; -1, which nothing
    reads, where the ring has come round to a shard that is none."""
    exists = jax.lax.axis_index(ring.axis) >= turn
    return jnp.where(exists, key_segments_BT, -1)


def _backward(ring, residuals, dout_BTNH):
    """Returns the cotangents of the arrays, None for integers."""
    k_BTKH, v_BTKH, segments_BT, q_BTNH, sinks_N, out_BTNH, lse_BTN = residuals
    wide = accumulation_dtype(q_BTNH.dtype)

    def gradients(k_BTKH, v_BTKH, key_segments_BT, sinks_N, *, beyond):
        *found, dsinks_N = attention_part_gradients(
            *(q_BTNH, k_BTKH, v_BTKH, segments_BT, key_segments_BT, sinks_N),
            *(out_BTNH, lse_BTN, dout_BTNH),
            part=ring.part,
            beyond=beyond,
        )
        return [x.astype(wide) for x in found], dsinks_N

    keys = (k_BTKH, v_BTKH, segments_BT)
    (dq_BTNH, *dkeys), dsinks_N = gradients(*keys, sinks_N, beyond=0)

    def step(carry, turn):
        travelling, dq_BTNH = carry
        travelling = _handed_on(travelling, ring)
        (k_BTKH, v_BTKH, key_segments_BT), dkeys = travelling
        seen_BT = _seen(key_segments_BT, turn, ring)
        (more_BTNH, *more), _ = gradients(
            k_BTKH, v_BTKH, seen_BT, None, beyond=q_BTNH.shape[1]
        )
        dkeys = jax.tree.map(jnp.add, dkeys, more)
        return ((travelling[0], dkeys), dq_BTNH + more_BTNH), None

    carry = ((keys, dkeys), dq_BTNH)
    ((_, dkeys), dq_BTNH), _ = jax.lax.scan(step, carry, _turns(ring))
    dk_BTKH, dv_BTKH = _handed_on(dkeys, ring)  # home
    return (
        dq_BTNH.astype(q_BTNH.dtype),
        dk_BTKH.astype(k_BTKH.dtype),
        dv_BTKH.astype(v_BTKH.dtype),
        None,
        None if sinks_N is None else dsinks_N,
    )


_attend.defvjp(_forward, _backward)
