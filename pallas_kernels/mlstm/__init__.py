"""The matrix memory of xLSTM (mLSTM), state in and state out."""

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
from pallas_kernels.matrix_memory.chunked import matrix_memory_chunked
from pallas_kernels.matrix_memory.division import joined, standardized_read
from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.reference import matrix_memory_reference
from pallas_kernels.matrix_memory.segments import resets
from pallas_kernels.matrix_memory.triton import matrix_memory_triton
from pallas_kernels.mlstm.state import MLSTMState, initial_state

__all__ = ["MLSTMState", "initial_state", "mlstm"]


def mlstm(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    i_BTN: jax.Array,
    f_BTN: jax.Array,
    /,
    *,
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
    """Returns what each query reads of the gated memory, h_BTNP, and the last state.

    With f = sigmoid(f~) and i = exp(i~) (or sigmoid(i~)), per head:
    C_t = f_t C_{t-1} + i_t k_t v_t^T, n_t = f_t n_{t-1} + i_t k_t,
    h_t = C_t^T q_t / sqrt(H) / max(|n_t . q_t| / sqrt(H), 1), held in a scale that
    cannot overflow (`matrix_memory/reference.py` has the equations, eps included).

    - `i_BTN`, `f_BTN`: pre-activations, any floating dtype; a soft-cap is the caller's.
    - `state`: the memory before the first token; None is the empty memory.
    - `segment_ids`: integers of shape (B, T). Where the id differs from the token
      before it (the state's last token included) the memory is emptied exactly.
    - `normalize`: False, for the sigmoid gate only, leaves out the division.
    - `norm_eps`: if given, (h - mean(h)) / sqrt(var(h) + norm_eps) of each head in the
      place of h, in float32 (float64 for float64): the layer's norm but for its scale.
      The derivative of the divisor is sum_P dh h, which a norm cancels to nothing but
      rounding; here it is taken in closed form.
    - `wide`: True hands h over in float32 (float64 for float64), its values still those
      of the dtype of q. For another norm behind h: of a dh that has been rounded to
      bfloat16 whole percents of dq, dk and di would be left in the place of that sum.
    - `precision`: "highest" multiplies float32 in full in the Triton form too, not in
      TF32, as jax.default_matmul_precision does.
    - `implementation`: None chooses; "triton" is kernels for GPUs; "chunked" is plain
      JAX and costs O(T C) too; "reference" steps.

    Sums, gates and states are in float32 (float64 for float64); matmuls take the dtype
    of q. Gradients are exact for every input, the state in and the state out.
    Source: Beck et al. 2024, arXiv:2405.04517; the sigmoid gate: Beck et al. 2025,
    arXiv:2503.14376.

    Raises:
      ValueError: shapes, dtypes or values other than the above.
    """
    q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN, state, segment_ids = jax.tree.map(
        jnp.asarray, (q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN, state, segment_ids)
    )
    size = _check(q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN, state, gate, normalize)
    check_segment_ids("mlstm", "segment_ids", segment_ids, q_BTNH.shape[:2])
    dtype, empty = accumulation_dtype(q_BTNH.dtype), state is None
    state, resets_BT = _start(state, segment_ids, size, dtype)
    log_f_BTN = jax.nn.log_sigmoid(f_BTN.astype(dtype))
    log_i_BTN = i_BTN.astype(dtype)
    if gate == "sigmoid":
        log_i_BTN = jax.nn.log_sigmoid(log_i_BTN)
    stabilise = gate == "exp"
    memory = Memory(state.c_BNHP, state.n_BNH, state.m_BN if stabilise else None)
    writes = Writes(log_i_BTN, log_f_BTN, resets_BT)
    arrays = alike((q_BTNH, k_BTNH, v_BTNP, writes, memory))
    precise = multiplies_in_full(precision)
    rules = Rules(size["H"] ** -0.5, stabilise, normalize, eps, precise)
    read, memory = dispatch(
        "mlstm",
        {
            "triton": lambda: matrix_memory_triton(*arrays, rules=rules, empty=empty),
            "chunked": lambda: matrix_memory_chunked(*arrays, rules=rules),
            "reference": lambda: matrix_memory_reference(*arrays, rules=rules),
        },
        implementation=implementation,
    )
    m_BN = memory.m_BN if stabilise else jnp.zeros_like(state.m_BN)
    if norm_eps is None:
        h_BTNP = joined(read, dtype if wide else q_BTNH.dtype)
    else:
        h_BTNP = standardized_read(read, norm_eps)
    return h_BTNP, MLSTMState(memory.c_BNHP, memory.n_BNH, m_BN, state.segment_id_B)


def _start(state, segment_ids_BT, size, dtype):
    """Returns the state before the first token, which already has the last token's
    segment id, and where the memory is emptied (None: nowhere)."""
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths, dtype=dtype)
    c_BNHP, n_BNH, m_BN = (a.astype(dtype) for a in state[:3])
    resets_BT, last_B = resets(segment_ids_BT, state.segment_id_B)
    return MLSTMState(c_BNHP, n_BNH, m_BN, last_B), resets_BT


def _check(q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN, state, gate, normalize):
    """Returns the size of each dimension; raises ValueError on a broken contract."""
    arrays = {"q_BTNH": q_BTNH, "k_BTNH": k_BTNH, "v_BTNP": v_BTNP}
    gates = {"i_BTN": i_BTN, "f_BTN": f_BTN}
    memory = {}
    if state is not None:
        memory = {
            "state.c_BNHP": state.c_BNHP,
            "state.n_BNH": state.n_BNH,
            "state.m_BN": state.m_BN,
            "state.segment_id_B": state.segment_id_B,
        }
    size = check_shapes("mlstm", {**arrays, **gates, **memory})
    check_floating("mlstm", arrays)
    for name, array in gates.items():
        check_floating("mlstm", {name: array})
    if gate not in ("exp", "sigmoid"):
        raise ValueError(f"mlstm wants gate 'exp' or 'sigmoid'; got {gate=}.")
    if gate == "exp" and not normalize:
        raise ValueError(
            "mlstm wants normalize=True with gate='exp', whose writes are unbounded; "
            "use gate='sigmoid' for a memory without normaliser."
        )
    return size
