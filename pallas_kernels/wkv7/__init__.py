"""The memory of RWKV-7: a decay per key channel and a rewrite per token."""

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
from pallas_kernels.linear_attention.state import LinearAttentionState, initial_state
from pallas_kernels.matrix_memory.segments import resets
from pallas_kernels.wkv7.chunked import wkv7_chunked
from pallas_kernels.wkv7.reference import wkv7_reference

__all__ = ["LinearAttentionState", "initial_state", "wkv7"]


def wkv7(
    r_BTNH: jax.Array,
    log_decay_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    a_BTNH: jax.Array,
    b_BTNH: jax.Array,
    /,
    *,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what each receptance r reads of the memory, out_BTNP, and the last state.
    Per head

    S_t = diag(exp(log_decay_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T
    out_t = S_t^T r_t

    - `log_decay_BTNH`: at most 0, any floating dtype.
    - `a_BTNH`, `b_BTNH`: what is read of the memory before the token's decay, and where
      it is added. RWKV-7 removes and rewrites: a = -c, b = c times a rate in (0, 1), c
      of unit length; the caller sees to it that the memory stays bounded.
    - `state`: the memory before the first token; None is the empty memory.
    - `segment_ids`: integers of shape (B, T). Where the id differs from the token
      before it (the state's last token included) the memory is emptied exactly.
    - `implementation`: None chooses; "chunked" is plain JAX and costs O(T C);
      "reference" steps.

    Sums, decays and states are in float32 (float64 for float64); matmuls take the dtype
    of r. Gradients are exact for every input, the state in and the state out. Source:
    Peng et al. 2025, arXiv:2503.14456, section 4, key-major.

    a = 0 or b = 0 is gated linear attention of scale 1. The gated delta rule of scale 1
    with decay w_t and rate beta_t is a_t = -w_t k_t, b_t = beta_t k_t, beta_t k_t in
    the place of k_t, whether w_t is one number per head or one per channel.

    Raises:
      ValueError: shapes, dtypes or values other than the above.
      NotImplementedError: the named implementation does not serve the call.
    """
    name = "wkv7"
    *arrays, state, segment_ids = jax.tree.map(
        jnp.asarray,
        (r_BTNH, log_decay_BTNH, k_BTNH, v_BTNP, a_BTNH, b_BTNH, state, segment_ids),
    )
    size = _check(name, arrays, state)
    check_segment_ids(name, "segment_ids", segment_ids, (size["B"], size["T"]))
    dtype = accumulation_dtype(arrays[0].dtype)
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths)
    resets_BT, segment_id_B = resets(segment_ids, state.segment_id_B)
    arrays[1] = arrays[1].astype(dtype)
    arrays = alike((*arrays, resets_BT, state.s_BNHP.astype(dtype)))
    out_BTNP, s_BNHP = dispatch(
        name,
        {
            "chunked": lambda: wkv7_chunked(*arrays),
            "reference": lambda: wkv7_reference(*arrays),
        },
        implementation=implementation,
    )
    return out_BTNP, LinearAttentionState(s_BNHP, segment_id_B)


def _check(name, arrays, state):
    """Returns the size of each dimension; raises ValueError on a broken contract."""
    names = ("r_BTNH", "log_decay_BTNH", "k_BTNH", "v_BTNP", "a_BTNH", "b_BTNH")
    tokens: dict[str, jax.Array] = dict(zip(names, arrays, strict=True))
    memory = {}
    if state is not None:
        memory = {
            "state.s_BNHP": state.s_BNHP,
            "state.segment_id_B": state.segment_id_B,
        }
    size = check_shapes(name, {**tokens, **memory})
    check_floating(name, {"log_decay_BTNH": tokens.pop("log_decay_BTNH")})
    check_floating(name, tokens)
    return size
