"""The gated delta rule and RWKV-7 over a sequence that is cut over an axis of a mesh.

Tokens that rewrite the memory make of S before them A S + B after them, a matrix A per
head. One run of the operation finds both: each column of a value has a memory of its
own, so that columns of zeros beside the values, started from the identity, end as A.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.gated_delta_rule import gated_delta_rule
from pallas_kernels.linear_attention.state import LinearAttentionState, initial_state
from pallas_kernels.sharded.prefix import (
    exclusive_scan,
    of_last_shard,
    segment_before,
    shards,
)
from pallas_kernels.wkv7 import wkv7


def gated_delta_rule_over(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    beta_BTN: jax.Array,
    /,
    *,
    axis: str,
    scale: float | None = None,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what `gated_delta_rule` does of the whole sequence: this shard's part of
    out_BTNP, and the last state, the same on every shard.

    For the inside of a jax.shard_map whose mesh axis `axis` cuts T of all arrays;
    `state` is the one before the whole sequence, on every shard. Across the axis go a
    state and an H x H matrix per head, in at most 1 + ceil(log2(shards - 1)) rounds;
    exact, gradients too. Where there are several shards the operation runs twice, once
    on values of P + H columns.

    Raises:
      ValueError: `axis` is no axis here, or what `gated_delta_rule` refuses.
      NotImplementedError: the named implementation does not serve the call.
    """

    def operation(v_BTNP, state):
        return gated_delta_rule(
            q_BTKH,
            k_BTKH,
            v_BTNP,
            log_decay_BTN,
            beta_BTN,
            scale=scale,
            state=state,
            segment_ids=segment_ids,
            precision=precision,
            implementation=implementation,
        )

    if shards(axis) > 1:
        arrays = {"k_BTKH": k_BTKH, "v_BTNP": v_BTNP}
        size = _check("gated_delta_rule", arrays, state, segment_ids)
        state = _before(operation, v_BTNP, size, state, segment_ids, axis=axis)
    out_BTNP, state = operation(v_BTNP, state)
    return out_BTNP, of_last_shard(state, axis=axis)


def wkv7_over(
    r_BTNH: jax.Array,
    log_decay_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    a_BTNH: jax.Array,
    b_BTNH: jax.Array,
    /,
    *,
    axis: str,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what `wkv7` does of the whole sequence: this shard's part of out_BTNP,
    and the last state, the same on every shard.

    For the inside of a jax.shard_map whose mesh axis `axis` cuts T of all arrays;
    `state` is the one before the whole sequence, on every shard. Across the axis go a
    state and an H x H matrix per head, in at most 1 + ceil(log2(shards - 1)) rounds;
    exact, gradients too. Where there are several shards the operation runs twice, once
    on values of P + H columns.

    Raises:
      ValueError: `axis` is no axis here, or what `wkv7` refuses.
      NotImplementedError: the named implementation does not serve the call.
    """

    def operation(v_BTNP, state):
        return wkv7(
            r_BTNH,
            log_decay_BTNH,
            k_BTNH,
            v_BTNP,
            a_BTNH,
            b_BTNH,
            state=state,
            segment_ids=segment_ids,
            implementation=implementation,
        )

    if shards(axis) > 1:
        arrays = {"k_BTNH": k_BTNH, "v_BTNP": v_BTNP}
        size = _check("wkv7", arrays, state, segment_ids)
        state = _before(operation, v_BTNP, size, state, segment_ids, axis=axis)
    out_BTNP, state = operation(v_BTNP, state)
    return out_BTNP, of_last_shard(state, axis=axis)


def _check(name, tokens, state, segment_ids):
    """Returns the size of each dimension; raises ValueError on what would not reach the
    checks of the operation itself."""
    memory = {}
    if state is not None:
        memory = {f"state.{field}": x for field, x in state._asdict().items()}
    size = check_shapes(name, {**tokens, **memory})
    check_floating(name, tokens)
    check_segment_ids(name, "segment_ids", segment_ids, (size["B"], size["T"]))
    return size


class Passage(NamedTuple):
    """What a stretch of tokens makes of the memory S before it: A S + s."""

    a_BNHH: jax.Array
    s_BNHP: jax.Array


def _before(operation, v_BTNP, size, state, segment_ids, /, *, axis):
    """Returns the state before this shard's first token."""
    dtype = accumulation_dtype(v_BTNP.dtype)
    widths = {"key_width": size["H"], "value_width": size["P"]}
    empty = initial_state(batch=size["B"], heads=size["N"], **widths, dtype=dtype)
    start_id_B = (empty if state is None else state).segment_id_B
    before_B = segment_before(segment_ids, start_id_B, axis=axis)
    one_HH = jnp.eye(size["H"], dtype=dtype)
    one_BNHH = jnp.broadcast_to(one_HH, (size["B"], size["N"], *one_HH.shape))
    nothing = Passage(one_BNHH, empty.s_BNHP)
    own = _passage(operation, v_BTNP, nothing, before_B)
    shards_before = exclusive_scan(_joined, own, nothing, axis=axis)
    s_BNHP = (
        shards_before.s_BNHP
    )  # without a state, A does not travel in the last round
    if state is not None:
        s_BNHP += _times(shards_before.a_BNHH, state.s_BNHP.astype(dtype))
    return LinearAttentionState(s_BNHP, before_B)


def _passage(operation, v_BTNP, nothing, before_B):
    """Returns the passage of the tokens of a shard."""
    P = v_BTNP.shape[-1]
    padding = [(0, 0)] * 3 + [(0, nothing.a_BNHH.shape[-1])]
    start_BNHX = jnp.concatenate([nothing.s_BNHP, nothing.a_BNHH], axis=-1)
    start = LinearAttentionState(start_BNHX, before_B)
    _, (s_BNHX, _) = operation(jnp.pad(v_BTNP, padding), start)
    return Passage(s_BNHX[..., P:], s_BNHX[..., :P])


def _joined(left: Passage, right: Passage) -> Passage:
    """Returns the passage of two stretches, the left one first."""
    a_BNHH, s_BNHP = (_times(right.a_BNHH, x) for x in left)
    return Passage(a_BNHH, s_BNHP + right.s_BNHP)


def _times(a_BNHH, x_BNHX):
    """Returns A x in full precision: rounding would add up from shard to shard."""
    return jnp.einsum("bnij,bnjx->bnix", a_BNHH, x_BNHX, precision="highest")
