"""Linear attention and the mLSTM over a sequence that is cut over an axis of a mesh.

To a shard of tokens the memory before it is one number per head, the decay of all its
tokens, and the memory that they write by themselves is one matmul of weighted values.
Both are joined from shard to shard; then each shard runs the operation itself, from the
memory that reaches it.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.channel_decay import dot, weighted
from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.linear_attention import (
    LinearAttentionState,
    linear_attention,
)
from pallas_kernels.linear_attention import initial_state as empty_linear_attention
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Writes
from pallas_kernels.matrix_memory.scale import finished, started
from pallas_kernels.matrix_memory.segments import resets
from pallas_kernels.mlstm import MLSTMState, mlstm
from pallas_kernels.mlstm import initial_state as empty_mlstm
from pallas_kernels.sharded.prefix import (
    exclusive_scan,
    of_last_shard,
    segment_before,
    shards,
)
from pallas_kernels.sharded.sums import behind


def linear_attention_over(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    /,
    *,
    axis: str,
    log_write: jax.Array | None = None,
    scale: float | None = None,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what `linear_attention` does of the whole sequence: this shard's part of
    out_BTNP, and the last state, the same on every shard.

    For the inside of a jax.shard_map whose mesh axis `axis` cuts T of all arrays;
    `state` is the one before the whole sequence, on every shard. Across the axis go
    states, in at most 1 + ceil(log2(shards - 1)) rounds; exact, gradients too.

    Raises:
      ValueError: `axis` is no axis here, or what `linear_attention` refuses.
      NotImplementedError: the named implementation does not serve the call.
    """
    if shards(axis) > 1:
        arrays = (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, log_write)
        arrays = jax.tree.map(jnp.asarray, arrays)
        state = _linear_attention_before(
            *arrays, state=state, segment_ids=segment_ids, axis=axis
        )
    out_BTNP, state = linear_attention(
        q_BTKH,
        k_BTKH,
        v_BTNP,
        log_decay_BTN,
        log_write=log_write,
        scale=scale,
        state=state,
        segment_ids=segment_ids,
        precision=precision,
        implementation=implementation,
    )
    return out_BTNP, of_last_shard(state, axis=axis)


def mlstm_over(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    i_BTN: jax.Array,
    f_BTN: jax.Array,
    /,
    *,
    axis: str,
    state: MLSTMState | None = None,
    segment_ids: jax.Array | None = None,
    gate: Literal["exp", "sigmoid"] = "exp",
    normalize: bool = True,
    eps: float = 1e-6,
    norm_eps: float | None = None,
    wide: bool = False,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, MLSTMState]:
    """Returns what `mlstm` does of the whole sequence: this shard's part of h_BTNP, and
    the last state, the same on every shard.

    For the inside of a jax.shard_map whose mesh axis `axis` cuts T of all arrays;
    `state` is the one before the whole sequence, on every shard. Across the axis go
    states, in at most 1 + ceil(log2(shards - 1)) rounds; exact, gradients too.

    Raises:
      ValueError: `axis` is no axis here, or what `mlstm` refuses.
    """
    if shards(axis) > 1:
        arrays = jax.tree.map(jnp.asarray, (q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN))
        state = _mlstm_before(
            *arrays, state=state, segment_ids=segment_ids, gate=gate, axis=axis
        )
    h_BTNP, state = mlstm(
        q_BTNH,
        k_BTNH,
        v_BTNP,
        i_BTN,
        f_BTN,
        state=state,
        segment_ids=segment_ids,
        gate=gate,
        normalize=normalize,
        eps=eps,
        norm_eps=norm_eps,
        wide=wide,
        precision=precision,
        implementation=implementation,
    )
    return h_BTNP, of_last_shard(state, axis=axis)


def _linear_attention_before(
    q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, log_write_BTN, *, state, segment_ids, axis
):
    """Returns the state before this shard's first token."""
    name = "linear_attention"
    tokens = {"q_BTKH": q_BTKH, "k_BTKH": k_BTKH, "v_BTNP": v_BTNP}
    gates = {"log_decay_BTN": log_decay_BTN, "log_write_BTN": log_write_BTN}
    size = _check(name, tokens, gates, state, segment_ids)
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = empty_linear_attention(batch=size["B"], heads=size["N"], **widths)
    before_B = segment_before(segment_ids, state.segment_id_B, axis=axis)
    resets_BT, _ = resets(segment_ids, before_B)
    dtype = accumulation_dtype(q_BTKH.dtype)
    if log_write_BTN is None:
        log_write_BTN = jnp.zeros_like(log_decay_BTN)
    writes = Writes(log_write_BTN.astype(dtype), log_decay_BTN.astype(dtype), resets_BT)
    start = Memory(state.s_BNHP.astype(dtype), None, None)
    memory = _memory_before(k_BTKH, v_BTNP, writes, start, axis=axis)
    return LinearAttentionState(memory.c_BNHP, before_B)


def _mlstm_before(
    q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN, *, state, segment_ids, gate, axis
):
    """Returns the state before this shard's first token."""
    tokens = {"q_BTNH": q_BTNH, "k_BTNH": k_BTNH, "v_BTNP": v_BTNP}
    gates = {"i_BTN": i_BTN, "f_BTN": f_BTN}
    size = _check("mlstm", tokens, gates, state, segment_ids)
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = empty_mlstm(batch=size["B"], heads=size["N"], **widths)
    before_B = segment_before(segment_ids, state.segment_id_B, axis=axis)
    resets_BT, _ = resets(segment_ids, before_B)
    dtype = accumulation_dtype(q_BTNH.dtype)
    log_i_BTN = i_BTN.astype(dtype)
    if gate == "sigmoid":
        log_i_BTN = jax.nn.log_sigmoid(log_i_BTN)
    writes = Writes(log_i_BTN, jax.nn.log_sigmoid(f_BTN.astype(dtype)), resets_BT)
    c_BNHP, n_BNH, m_BN = (x.astype(dtype) for x in state[:3])
    start = Memory(c_BNHP, n_BNH, None if gate == "sigmoid" else m_BN)
    memory = _memory_before(k_BTNH, v_BTNP, writes, start, axis=axis)
    if gate == "sigmoid":
        memory = memory._replace(m_BN=m_BN)
    return MLSTMState(*memory, before_B)


def _check(name, tokens, gates, state, segment_ids):
    """Returns the size of each dimension; raises ValueError on what would not reach the
    checks of the operation itself."""
    memory = {} if state is None else {f"state.{n}": x for n, x in _fields(state)}
    size = check_shapes(name, {**tokens, **gates, **memory})
    check_floating(name, tokens)
    for gate, array in gates.items():
        check_floating(name, {gate: array})
    check_segment_ids(name, "segment_ids", segment_ids, (size["B"], size["T"]))
    if size["N"] % size.get("K", size["N"]):
        raise ValueError(
            f"{name} wants the number of value heads to be a multiple of the number of "
            f"query/key heads; got N = {size['N']}, K = {size['K']}."
        )
    return size


def _fields(state):
    return state._asdict().items()


class Passage(NamedTuple):
    """What a stretch of tokens does to the memory before it: exp(keep) of it stays,
    nothing where keep is EMPTY, and `written` is added.

    C and n of `written` take its scale for a constant; m has its derivative.
    """

    keep_BN: jax.Array
    written: Memory


def _memory_before(k_BTKH, v_BTNP, writes, start, *, axis):
    """Returns the memory before this shard's first token, `start` being the one before
    the first token of all."""
    rules = {
        "normalised": start.n_BNH is not None,
        "stabilised": start.m_BN is not None,
    }
    # Computed again in the backward pass: but for the matmul it is one pass over v.
    own = jax.checkpoint(partial(_passage, **rules))(k_BTKH, v_BTNP, writes)
    zero: Any = jax.tree.map(jnp.zeros_like, own)
    nothing = zero
    if start.m_BN is not None:
        empty_BN = jnp.full_like(start.m_BN, EMPTY)
        nothing = Passage(zero.keep_BN, zero.written._replace(m_BN=empty_BN))
    shards_before = exclusive_scan(_joined, own, nothing, axis=axis)
    constant = started(start)._replace(m_BN=start.m_BN)
    c_BNHP, n_BNH, m_BN = _joined(
        Passage(zero.keep_BN, constant), shards_before
    ).written
    m_BN1 = None if m_BN is None else m_BN[..., None]
    return finished(Memory(c_BNHP, n_BNH, None), m_BN1)


def _passage(k_BTKH, v_BTNP, writes, *, normalised, stabilised):
    """Returns the passage of the tokens of a shard."""
    log_i_BTN, log_f_BTN, resets_BT = writes
    log_f_behind_BTN, keep_BN = behind(log_f_BTN)
    log_weight_BTN = log_f_behind_BTN + log_i_BTN
    lasting_BT1 = None
    if resets_BT is not None:
        resets_behind_BT, resets_B = behind(resets_BT.astype(jnp.int32))
        lasting_BT1 = (resets_behind_BT == 0)[..., None]
        log_weight_BTN = jnp.where(lasting_BT1, log_weight_BTN, EMPTY)
        keep_BN = jnp.where(resets_B[:, None] == 0, keep_BN, EMPTY)
    m_BN = None
    if stabilised:
        m_BN = jnp.maximum(_largest(log_weight_BTN), EMPTY)
        log_weight_BTN -= jax.lax.stop_gradient(m_BN)[:, None]
    weight_BTN = jnp.exp(log_weight_BTN)
    if lasting_BT1 is not None:  # whatever m is, nothing crosses a reset
        weight_BTN = jnp.where(lasting_BT1, weight_BTN, 0.0)
    return Passage(keep_BN, _written(k_BTKH, v_BTNP, weight_BTN, m_BN, normalised))


def _largest(x_BTN):
    """Returns the largest element over the tokens, of which its place has the gradient.

    The gradient of jnp.max looks for elements equal to the maximum. Computed once more
    for the backward pass, in another order, none may be, and it would divide 0 by 0.
    """
    place_B1N = jnp.argmax(jax.lax.stop_gradient(x_BTN), axis=1, keepdims=True)
    return jnp.take_along_axis(x_BTN, place_B1N, axis=1)[:, 0]


def _written(k_BTKH, v_BTNP, weight_BTN, m_BN, normalised):
    """Returns the memory of tokens that enter it with these weights."""
    B, T, K, H = k_BTKH.shape
    N = v_BTNP.shape[2]
    v_BTNP = weighted(v_BTNP, weight_BTN[..., None])
    v_BTKGP = v_BTNP.reshape(B, T, K, N // K, -1)
    c_BKGHP = dot("btkh,btkgp->bkghp", k_BTKH, v_BTKGP)
    n_BNH = None
    if normalised:
        k_BTNH = jnp.repeat(k_BTKH, N // K, axis=2).astype(weight_BTN.dtype)
        n_BNH = dot("btnh,btn->bnh", k_BTNH, weight_BTN)
    return Memory(c_BKGHP.reshape(B, N, H, -1), n_BNH, m_BN)


def _joined(left: Passage, right: Passage) -> Passage:
    """Returns the passage of two stretches, the left one first."""
    keep_BN = jnp.maximum(left.keep_BN + right.keep_BN, EMPTY)
    log_old_BN, new_BN, m_BN = right.keep_BN, jnp.ones_like(keep_BN), None
    if right.written.m_BN is not None:
        old_m_BN = right.keep_BN + left.written.m_BN
        m_BN = jnp.maximum(jnp.maximum(old_m_BN, right.written.m_BN), EMPTY)
        left_m_BN, right_m_BN, fixed_BN = jax.lax.stop_gradient(
            (left.written.m_BN, right.written.m_BN, m_BN)
        )
        log_old_BN = right.keep_BN + (left_m_BN - fixed_BN)
        new_BN = jnp.exp(right_m_BN - fixed_BN)
    emptied_BN = right.keep_BN <= EMPTY  # exactly, whatever the scales are
    old_BN = jnp.where(emptied_BN, 0.0, jnp.exp(log_old_BN))

    def weighted_sum(old_BNX, new_BNX):
        columns = tuple(range(2, old_BNX.ndim))
        old_weight, new_weight = (jnp.expand_dims(x, columns) for x in (old_BN, new_BN))
        return old_BNX * old_weight + new_BNX * new_weight

    parts = (memory.written[:2] for memory in (left, right))
    c_BNHP, n_BNH = jax.tree.map(weighted_sum, *parts)
    return Passage(keep_BN, Memory(c_BNHP, n_BNH, m_BN))
