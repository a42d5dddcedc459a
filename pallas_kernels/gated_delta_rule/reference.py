"""The definition of the gated delta rule: one token after the other."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def gated_delta_rule_reference(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    beta_BTN: jax.Array,
    resets_BT: jax.Array | None,
    s_BNHP: jax.Array,
    /,
    *,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNP and the last memory of the recurrence, per value head

    S_t = exp(log_decay_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    out_t = scale S_t^T q_t

    A reset empties the memory before its token is written. Each of the K query/key
    heads serves N / K consecutive heads of values and gates. Source: Yang et al. 2025,
    eq. 10, arXiv:2412.06464.
    """
    dtype = accumulation_dtype(q_BTKH.dtype)
    group = v_BTNP.shape[2] // q_BTKH.shape[2]
    if resets_BT is None:
        resets_BT = jnp.zeros(q_BTKH.shape[:2], bool)
    q_BTNH, k_BTNH = (jnp.repeat(x, group, axis=2) for x in (q_BTKH, k_BTKH))
    tokens = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTN, beta_BTN)
    tokens_TB = [jnp.moveaxis(x, 1, 0).astype(dtype) for x in tokens]
    s_BNHP, out_TBNP = jax.lax.scan(
        partial(_step, scale=scale),
        s_BNHP,
        (*tokens_TB, jnp.moveaxis(resets_BT, 1, 0)),
    )
    return jnp.moveaxis(out_TBNP, 0, 1).astype(q_BTKH.dtype), s_BNHP


def _step(s_BNHP, token, *, scale):
    q_BNH, k_BNH, v_BNP, log_decay_BN, beta_BN, reset_B = token
    s_BNHP = jnp.where(reset_B[:, None, None, None], 0.0, s_BNHP)
    s_BNHP = jnp.exp(log_decay_BN)[..., None, None] * s_BNHP
    read_BNP = jnp.einsum("bnhp,bnh->bnp", s_BNHP, k_BNH, precision="highest")
    new_BNP = beta_BN[..., None] * (v_BNP - read_BNP)
    s_BNHP = s_BNHP + k_BNH[..., :, None] * new_BNP[..., None, :]
    q_BNH = scale * q_BNH
    return s_BNHP, jnp.einsum("bnhp,bnh->bnp", s_BNHP, q_BNH, precision="highest")
