"""Gated linear attention: a decay per key channel and token, state in and state out."""

import jax
import jax.numpy as jnp

from pallas_kernels.backend import alike
from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.dispatch import dispatch
from pallas_kernels.gated_linear_attention.chunked import (
    gated_linear_attention_chunked,
)
from pallas_kernels.gated_linear_attention.reference import (
    gated_linear_attention_reference,
)
from pallas_kernels.gated_linear_attention.triton import (
    gated_linear_attention_triton,
)
from pallas_kernels.linear_attention.state import LinearAttentionState, initial_state
from pallas_kernels.matrix_memory.segments import resets

__all__ = ["LinearAttentionState", "gated_linear_attention", "initial_state"]

MOST_TOKENS = 16  # of a step of decoding, for which a kernel's chunk is too long


def gated_linear_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTNH: jax.Array,
    /,
    *,
    scale: float | None = None,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what each query reads of a memory whose every key channel decays at its
    own rate, out_BTNP, and the last state. Per head

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, out_t = scale S_t^T q_t

    - `log_decay_BTNH`: at most 0, any floating dtype; 0 keeps all, -inf nothing.
    - `scale`: a number, not traced; None is 1 / sqrt(H).
    - `state`: the memory before the first token; None is the empty memory.
    - `segment_ids`: integers of shape (B, T). Where the id differs from the token
      before it (the state's last token included) the memory is emptied exactly.
    - `implementation`: None chooses; "triton" runs Pallas kernels on a GPU; "chunked"
      is plain JAX and costs O(T C) too; "reference" steps.

    Sums, decays and states are in float32 (float64 for float64); matmuls take the dtype
    of q, and multiply float32 in full. Gradients are exact for every input, the state
    in and the state out. However strong a decay is, no weight overflows and the weak
    decays beside it keep their digits (see channel_decay.py).

    GLA (Yang et al. 2024, arXiv:2312.06635) has log_decay = log sigmoid(x W + b) / 16.

    Raises:
      ValueError: shapes, dtypes or values other than the above.
      NotImplementedError: the named implementation does not serve the call.
    """
    q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, state, segment_ids = jax.tree.map(
        jnp.asarray, (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, state, segment_ids)
    )
    size = _check(q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, state, segment_ids)
    dtype, empty = accumulation_dtype(q_BTNH.dtype), state is None
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths)
    resets_BT, segment_id_B = resets(segment_ids, state.segment_id_B)
    tokens = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH.astype(dtype))
    arrays = alike((*tokens, resets_BT, state.s_BNHP.astype(dtype)))
    scale = size["H"] ** -0.5 if scale is None else float(scale)
    if implementation is None and size["T"] <= MOST_TOKENS:
        implementation = "chunked"
    out_BTNP, s_BNHP = dispatch(
        "gated_linear_attention",
        {
            "triton": lambda: gated_linear_attention_triton(
                *arrays, scale=scale, empty=empty
            ),
            "chunked": lambda: gated_linear_attention_chunked(*arrays, scale=scale),
            "reference": lambda: gated_linear_attention_reference(*arrays, scale=scale),
        },
        implementation=implementation,
    )
    return out_BTNP, LinearAttentionState(s_BNHP, segment_id_B)


def _check(q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, state, segment_ids):
    """Returns the size of each dimension; raises ValueError on a broken contract."""
    name = "gated_linear_attention"
    arrays = {"q_BTNH": q_BTNH, "k_BTNH": k_BTNH, "v_BTNP": v_BTNP}
    decay = {"log_decay_BTNH": log_decay_BTNH}
    memory = {}
    if state is not None:
        memory = {
            "state.s_BNHP": state.s_BNHP,
            "state.segment_id_B": state.segment_id_B,
        }
    size = check_shapes(name, {**arrays, **decay, **memory})
    check_floating(name, arrays)
    check_floating(name, decay)
    check_segment_ids(name, "segment_ids", segment_ids, q_BTNH.shape[:2])
    return size
