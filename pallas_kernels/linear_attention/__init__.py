"""Linear attention with a scalar decay per head and token, state in and state out."""

from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.backend import alike, multiplies_in_full
from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.dispatch import dispatch
from pallas_kernels.linear_attention.state import LinearAttentionState, initial_state
from pallas_kernels.matrix_memory.chunked import matrix_memory_chunked
from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.reference import matrix_memory_reference
from pallas_kernels.matrix_memory.segments import resets
from pallas_kernels.matrix_memory.triton import matrix_memory_triton

__all__ = ["LinearAttentionState", "initial_state", "linear_attention"]


def linear_attention(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    /,
    *,
    log_write: jax.Array | None = None,
    scale: float | None = None,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what each query reads of the decaying memory, out_BTNP, and the last
    state. Per value head

    S_t = exp(log_decay_t) S_{t-1} + exp(log_write_t) k_t v_t^T, out_t = scale S_t^T q_t

    - `log_decay_BTN`: any floating dtype; 0 keeps all. One decay per head, log_decay_N,
      is jnp.broadcast_to(log_decay_N, (B, T, N)).
    - `log_write`: of shape (B, T, N), any floating dtype; None is 0.
    - `scale`: a number, not traced; None is 1 / sqrt(H).
    - `state`: the memory before the first token; None is the empty memory.
    - `segment_ids`: integers of shape (B, T). Where the id differs from the token
      before it (the state's last token included) the memory is emptied exactly.
    - `precision`: "highest" multiplies float32 arrays in full. None leaves that to
      jax.default_matmul_precision in the GPU kernels, which round them to TF32 unless
      it says "highest"; the other forms always multiply in full.
    - `implementation`: None chooses; "triton" runs Pallas kernels on a GPU; "chunked"
      is plain JAX and costs O(T C) too; "reference" steps.

    N is a multiple of K: value heads n*G to n*G + G - 1 share query/key head n. Sums,
    gates and states are in float32 (float64 for float64); matmuls take the dtype of q.
    Gradients are exact for every input, the state in and the state out.

    Of this form, the rest of each layer being the caller's, are
    - SSD of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060): q = C, k = B, v = x, one
      query/key head per group, log_decay = dt A, log_write = log dt, scale 1;
    - RetNet (Sun et al. 2023, arXiv:2307.08621): log_decay = log(1 - 2^(-5 - n)) in
      head n = 0, 1, ..., rotated q and k;
    - Lightning Attention (Qin et al. 2024, arXiv:2401.04658): log_decay = -slope_n,
      fixed per head, scale 1;
    - the mLSTM with sigmoid gates and no normaliser (Beck et al. 2025,
      arXiv:2503.14376): log_decay = log sigmoid(f~), log_write = log sigmoid(i~).

    Raises:
      ValueError: shapes, dtypes or values other than the above.
      NotImplementedError: the named implementation does not serve the call.
    """
    q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, log_write, state, segment_ids = jax.tree.map(
        jnp.asarray,
        (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, log_write, state, segment_ids),
    )
    size = _check(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, log_write, state)
    check_segment_ids("linear_attention", "segment_ids", segment_ids, q_BTKH.shape[:2])
    dtype, empty = accumulation_dtype(q_BTKH.dtype), state is None
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths)
    resets_BT, segment_id_B = resets(segment_ids, state.segment_id_B)
    if log_write is None:
        log_write = jnp.zeros_like(log_decay_BTN)
    writes = Writes(log_write.astype(dtype), log_decay_BTN.astype(dtype), resets_BT)
    memory = Memory(state.s_BNHP.astype(dtype), None, None)
    arrays = alike((q_BTKH, k_BTKH, v_BTNP, writes, memory))
    rules = Rules(
        size["H"] ** -0.5 if scale is None else float(scale),
        stabilise=False,
        normalize=False,
        precise=multiplies_in_full(precision),
    )
    out, memory = dispatch(
        "linear_attention",
        {
            "triton": lambda: matrix_memory_triton(*arrays, rules=rules, empty=empty),
            "chunked": lambda: matrix_memory_chunked(*arrays, rules=rules),
            "reference": lambda: matrix_memory_reference(*arrays, rules=rules),
        },
        implementation=implementation,
    )
    return out.h_BTNP, LinearAttentionState(memory.c_BNHP, segment_id_B)


def _check(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, log_write, state):
    """Returns the size of each dimension; raises ValueError on a broken contract."""
    name = "linear_attention"
    arrays = {"q_BTKH": q_BTKH, "k_BTKH": k_BTKH, "v_BTNP": v_BTNP}
    gates = {"log_decay_BTN": log_decay_BTN, "log_write_BTN": log_write}
    memory = {}
    if state is not None:
        memory = {
            "state.s_BNHP": state.s_BNHP,
            "state.segment_id_B": state.segment_id_B,
        }
    size = check_shapes(name, {**arrays, **gates, **memory})
    check_floating(name, arrays)
    for gate, array in gates.items():
        check_floating(name, {gate: array})
    if size["N"] % size["K"]:
        raise ValueError(
            f"{name} wants the number of value heads to be a multiple of the number of "
            f"query/key heads; got N = {size['N']}, K = {size['K']}."
        )
    return size
