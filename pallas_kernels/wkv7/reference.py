"""The definition of the memory of RWKV-7: one token after the other."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def wkv7_reference(
    r_BTNH: jax.Array,
    log_decay_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    a_BTNH: jax.Array,
    b_BTNH: jax.Array,
    resets_BT: Any,
    s_BNHP: jax.Array,
    /,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNP and the last memory of the recurrence, per head

    S_t = diag(exp(log_decay_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T
    out_t = S_t^T r_t

    A reset empties the memory before its token reads or writes. Source: Peng et al.
    2025, arXiv:2503.14456, section 4, where the state is S^T.
    """
    dtype = accumulation_dtype(r_BTNH.dtype)
    if resets_BT is None:
        resets_BT = jnp.zeros(r_BTNH.shape[:2], bool)
    tokens = (r_BTNH, log_decay_BTNH, k_BTNH, v_BTNP, a_BTNH, b_BTNH)
    tokens_TB = [jnp.moveaxis(x, 1, 0).astype(dtype) for x in tokens]
    s_BNHP, out_TBNP = jax.lax.scan(
        _step, s_BNHP, (*tokens_TB, jnp.moveaxis(resets_BT, 1, 0))
    )
    return jnp.moveaxis(out_TBNP, 0, 1).astype(r_BTNH.dtype), s_BNHP


def _step(s_BNHP, token):
    r_BNH, log_decay_BNH, k_BNH, v_BNP, a_BNH, b_BNH, reset_B = token
    s_BNHP = jnp.where(reset_B[:, None, None, None], 0.0, s_BNHP)
    u_BNP = jnp.einsum("bnhp,bnh->bnp", s_BNHP, a_BNH, precision="highest")
    s_BNHP = jnp.exp(log_decay_BNH)[..., None] * s_BNHP
    s_BNHP += b_BNH[..., :, None] * u_BNP[..., None, :]
    s_BNHP += k_BNH[..., :, None] * v_BNP[..., None, :]
    return s_BNHP, jnp.einsum("bnhp,bnh->bnp", s_BNHP, r_BNH, precision="highest")
