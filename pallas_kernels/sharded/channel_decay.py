"""Gated linear attention over a sequence that is cut over an axis of a mesh.

To a shard of tokens the memory before it is one decay per key channel, and the memory
that they write by themselves is one matmul of weighted keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.channel_decay import EMPTIED, dot, weighted
from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.gated_linear_attention import (
    LinearAttentionState,
    gated_linear_attention,
    initial_state,
)
from pallas_kernels.matrix_memory.segments import resets
from pallas_kernels.sharded.prefix import (
    exclusive_scan,
    of_last_shard,
    segment_before,
    shards,
)
from pallas_kernels.sharded.sums import behind


def gated_linear_attention_over(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTNH: jax.Array,
    /,
    *,
    axis: str,
    scale: float | None = None,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what `gated_linear_attention` does of the whole sequence: this shard's
    part of out_BTNP, and the last state, the same on every shard.

    For the inside of a jax.shard_map whose mesh axis `axis` cuts T of all arrays;
    `state` is the one before the whole sequence, on every shard. Across the axis go
    states, in at most 1 + ceil(log2(shards - 1)) rounds; exact, gradients too.

    Raises:
      ValueError: `axis` is no axis here, or what `gated_linear_attention` refuses.
      NotImplementedError: the named implementation does not serve the call.
    """
    if shards(axis) > 1:
        arrays = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH)
        arrays = jax.tree.map(jnp.asarray, arrays)
        state = _before(*arrays, state=state, segment_ids=segment_ids, axis=axis)
    out_BTNP, state = gated_linear_attention(
        q_BTNH,
        k_BTNH,
        v_BTNP,
        log_decay_BTNH,
        scale=scale,
        state=state,
        segment_ids=segment_ids,
        implementation=implementation,
    )
    return out_BTNP, of_last_shard(state, axis=axis)


def _before(q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, *, state, segment_ids, axis):
    """Returns the state before this shard's first token."""
    tokens = {"q_BTNH": q_BTNH, "k_BTNH": k_BTNH, "v_BTNP": v_BTNP}
    size = _check(tokens, log_decay_BTNH, state, segment_ids)
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths)
    before_B = segment_before(segment_ids, state.segment_id_B, axis=axis)
    resets_BT, _ = resets(segment_ids, before_B)
    dtype = accumulation_dtype(q_BTNH.dtype)
    log_decay_BTNH = jnp.maximum(log_decay_BTNH.astype(dtype), EMPTIED)
    if resets_BT is not None:
        log_decay_BTNH = jnp.where(resets_BT[..., None, None], EMPTIED, log_decay_BTNH)
    # Computed again in the backward pass: but for the matmul it is one pass over k.
    own = jax.checkpoint(_passage)(k_BTNH, v_BTNP, log_decay_BTNH)
    nothing = jax.tree.map(jnp.zeros_like, own)
    shards_before = exclusive_scan(_joined, own, nothing, axis=axis)
    start = Passage(nothing.keep_BNH, state.s_BNHP.astype(dtype))
    return LinearAttentionState(_joined(start, shards_before).s_BNHP, before_B)


def _check(tokens, log_decay_BTNH, state, segment_ids):
    """Returns the size of each dimension; raises ValueError on what would not reach the
    checks of the operation itself."""
    name, decay = "gated_linear_attention", {"log_decay_BTNH": log_decay_BTNH}
    memory = {}
    if state is not None:
        memory = {f"state.{field}": x for field, x in state._asdict().items()}
    size = check_shapes(name, {**tokens, **decay, **memory})
    check_floating(name, tokens)
    check_floating(name, decay)
    check_segment_ids(name, "segment_ids", segment_ids, (size["B"], size["T"]))
    return size


class Passage(NamedTuple):
    """What a stretch of tokens does to the memory before it: exp(keep) of each of its
    channels stays, and s is added."""

    keep_BNH: jax.Array
    s_BNHP: jax.Array


def _passage(k_BTNH, v_BTNP, log_decay_BTNH):
    """Returns the passage of the tokens of a shard."""
    log_write_BTNH, keep_BNH = behind(log_decay_BTNH)
    write_BTNH = weighted(k_BTNH, jnp.exp(log_write_BTNH))
    s_BNHP = dot("btnh,btnp->bnhp", write_BTNH, v_BTNP)
    return Passage(jnp.maximum(keep_BNH, EMPTIED), s_BNHP)


def _joined(left: Passage, right: Passage) -> Passage:
    """Returns the passage of two stretches, the left one first."""
    keep_BNH = jnp.maximum(left.keep_BNH + right.keep_BNH, EMPTIED)
    old_BNHP = jnp.exp(right.keep_BNH)[..., None] * left.s_BNHP
    return Passage(keep_BNH, old_BNHP + right.s_BNHP)
