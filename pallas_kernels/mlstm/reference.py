"""The definition of the mLSTM: one token after the other."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.mlstm.state import EMPTY, MLSTMState


def mlstm_reference(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    log_i_BTN: jax.Array,
    log_f_BTN: jax.Array,
    resets_BT: jax.Array | None,
    state: MLSTMState,
    /,
    *,
    stabilise: bool,
    normalize: bool,
    eps: float,
) -> tuple[jax.Array, MLSTMState]:
    """Returns h_BTNP and the last state of the recurrence, per head

    m_t = max(log f_t + m_{t-1}, log i_t)            (0 where not `stabilise`)
    C_t = exp(log f_t + m_{t-1} - m_t) C_{t-1} + exp(log i_t - m_t) k_t v_t^T
    n_t = exp(log f_t + m_{t-1} - m_t) n_{t-1} + exp(log i_t - m_t) k_t
    h_t = (C_t^T q_t / sqrt(H)) / (max(|n_t . q_t| / sqrt(H), exp(-m_t)) + eps)

    and h_t = C_t^T q_t / sqrt(H) where not `normalize`. A reset empties the memory
    before its token is written. Source: Beck et al. 2024, eq. 19-27, arXiv:2405.04517.
    """
    dtype = accumulation_dtype(q_BTNH.dtype)
    if resets_BT is None:
        resets_BT = jnp.zeros(q_BTNH.shape[:2], bool)
    tokens = (q_BTNH, k_BTNH, v_BTNP, log_i_BTN, log_f_BTN)
    tokens_TB = [jnp.moveaxis(a, 1, 0).astype(dtype) for a in tokens]
    step = partial(_step, stabilise=stabilise, normalize=normalize, eps=eps)
    memory, h_TBNP = jax.lax.scan(
        step,
        (state.c_BNHP, state.n_BNH, state.m_BN),
        (*tokens_TB, jnp.moveaxis(resets_BT, 1, 0)),
    )
    h_BTNP = jnp.moveaxis(h_TBNP, 0, 1).astype(q_BTNH.dtype)
    return h_BTNP, MLSTMState(*memory, state.segment_id_B)


def _step(memory, token, *, stabilise, normalize, eps):
    c_BNHP, n_BNH, m_BN = memory
    q_BNH, k_BNH, v_BNP, log_i_BN, log_f_BN, reset_B = token
    m_BN = jnp.where(reset_B[:, None], EMPTY, m_BN)
    c_BNHP = jnp.where(reset_B[:, None, None, None], 0.0, c_BNHP)
    n_BNH = jnp.where(reset_B[:, None, None], 0.0, n_BNH)
    if stabilise:
        new_m_BN = jnp.maximum(log_f_BN + m_BN, log_i_BN)
        decay_BN = jnp.exp(log_f_BN + m_BN - new_m_BN)
    else:
        new_m_BN = jnp.zeros_like(m_BN)
        decay_BN = jnp.exp(log_f_BN)
    write_BN = jnp.exp(log_i_BN - new_m_BN)
    outer_BNHP = k_BNH[..., :, None] * v_BNP[..., None, :]
    c_BNHP = decay_BN[..., None, None] * c_BNHP + write_BN[..., None, None] * outer_BNHP
    n_BNH = decay_BN[..., None] * n_BNH + write_BN[..., None] * k_BNH
    q_BNH = q_BNH * q_BNH.shape[-1] ** -0.5
    h_BNP = jnp.einsum("bnhp,bnh->bnp", c_BNHP, q_BNH, precision="highest")
    if normalize:
        dot_BN = jnp.einsum("bnh,bnh->bn", n_BNH, q_BNH, precision="highest")
        floor_BN = jnp.exp(-new_m_BN)
        h_BNP = h_BNP / (jnp.maximum(jnp.abs(dot_BN), floor_BN) + eps)[..., None]
    return (c_BNHP, n_BNH, new_m_BN), h_BNP
