"""The matrix memory of xLSTM (mLSTM), state in and state out."""

from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.dispatch import dispatch
from pallas_kernels.mlstm.chunked import mlstm_chunked
from pallas_kernels.mlstm.reference import mlstm_reference
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
    implementation: str | None = None,
) -> tuple[jax.Array, MLSTMState]:
    """Returns what each query reads of the gated memory, h_BTNP, and the last state.

    With f = sigmoid(f~) and i = exp(i~) (or sigmoid(i~)), per head:
    C_t = f_t C_{t-1} + i_t k_t v_t^T, n_t = f_t n_{t-1} + i_t k_t,
    h_t = C_t^T q_t / sqrt(H) / max(|n_t . q_t| / sqrt(H), 1), held in a scale that
    cannot overflow (`reference.py` has the equations, eps included).

    - `i_BTN`, `f_BTN`: pre-activations, any floating dtype; a soft-cap is the caller's.
    - `state`: the memory before the first token; None is the empty memory.
    - `segment_ids`: integers of shape (B, T). Where the id differs from the token
      before it (the state's last token included) the memory is emptied exactly.
    - `normalize`: False, for the sigmoid gate only, leaves out the division.
    - `implementation`: None chooses; "chunked" costs O(T C); "reference" steps.

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
    dtype = accumulation_dtype(q_BTNH.dtype)
    state, resets_BT = _start(state, segment_ids, size, dtype)
    log_f_BTN = jax.nn.log_sigmoid(f_BTN.astype(dtype))
    log_i_BTN = i_BTN.astype(dtype)
    if gate == "sigmoid":
        log_i_BTN = jax.nn.log_sigmoid(log_i_BTN)
    arrays = (q_BTNH, k_BTNH, v_BTNP, log_i_BTN, log_f_BTN, resets_BT, state)
    options = {"stabilise": gate == "exp", "normalize": normalize, "eps": eps}
    return dispatch(
        "mlstm",
        {
            "chunked": lambda: mlstm_chunked(*arrays, **options),
            "reference": lambda: mlstm_reference(*arrays, **options),
        },
        implementation=implementation,
    )


def _start(state, segment_ids_BT, size, dtype):
    """Returns the state before the first token, which already has the last token's
    segment id, and where the memory is emptied (None: nowhere)."""
    first_B = None if state is None else state.segment_id_B
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths, dtype=dtype)
    c_BNHP, n_BNH, m_BN = (a.astype(dtype) for a in state[:3])
    state = MLSTMState(c_BNHP, n_BNH, m_BN, state.segment_id_B)
    if segment_ids_BT is None:
        return state, None
    ids_BT = segment_ids_BT.astype(jnp.int32)
    first_B = ids_BT[:, 0] if first_B is None else first_B
    before_BT = jnp.concatenate([first_B[:, None], ids_BT[:, :-1]], axis=1)
    return state._replace(segment_id_B=ids_BT[:, -1]), ids_BT != before_BT


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
