"""The definition of gated linear attention: one token after the other."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def gated_linear_attention_reference(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTNH: jax.Array,
    resets_BT: Any,
    s_BNHP: jax.Array,
    /,
    *,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNP and the last memory of the recurrence, per head

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T,  out_t = scale S_t^T q_t.

    A reset empties the memory before its token is written. Source: Yang et al. 2024,
    eq. 3, arXiv:2312.06635.
    """
    dtype = accumulation_dtype(q_BTNH.dtype)
    if resets_BT is None:
        resets_BT = jnp.zeros(q_BTNH.shape[:2], bool)
    tokens = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH)
    tokens_TB = [jnp.moveaxis(x, 1, 0).astype(dtype) for x in tokens]
    s_BNHP, out_TBNP = jax.lax.scan(
        partial(_step, scale=scale), s_BNHP, (*tokens_TB, jnp.moveaxis(resets_BT, 1, 0))
    )
    return jnp.moveaxis(out_TBNP, 0, 1).astype(q_BTNH.dtype), s_BNHP


def _step(s_BNHP, token, *, scale):
    q_BNH, k_BNH, v_BNP, log_decay_BNH, reset_B = token
    s_BNHP = jnp.where(reset_B[:, None, None, None], 0.0, s_BNHP)
    s_BNHP = jnp.exp(log_decay_BNH)[..., None] * s_BNHP
    s_BNHP += k_BNH[..., :, None] * v_BNP[..., None, :]
    out_BNP = jnp.einsum("bnhp,bnh->bnp", s_BNHP, scale * q_BNH, precision="highest")
    return s_BNHP, out_BNP
