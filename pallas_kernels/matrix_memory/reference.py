"""The definition of the matrix memory: one token after the other."""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.matrix_memory.division import Read, divided
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Rules, Writes


def matrix_memory_reference(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    writes: Writes,
    memory: Memory,
    /,
    *,
    rules: Rules,
) -> tuple[Read, Memory]:
    """Returns h, in two factors, and the last memory of the recurrence, per head

    m_t = max(log f_t + m_{t-1}, log i_t)            (0 where not `stabilise`)
    C_t = exp(log f_t + m_{t-1} - m_t) C_{t-1} + exp(log i_t - m_t) k_t v_t^T
    n_t = exp(log f_t + m_{t-1} - m_t) n_{t-1} + exp(log i_t - m_t) k_t
    h_t = scale C_t^T q_t / (max(scale |n_t . q_t|, exp(-m_t)) + eps)

    and h_t = scale C_t^T q_t where not `normalize`. A reset empties the memory before
    its token is written. Each of the K query/key heads serves N / K consecutive heads
    of values and gates. Source: Beck et al. 2024, eq. 19-27, arXiv:2405.04517.
    """
    dtype = accumulation_dtype(q_BTKH.dtype)
    group = v_BTNP.shape[2] // q_BTKH.shape[2]
    resets_BT = writes.resets_BT
    if resets_BT is None:
        resets_BT = jnp.zeros(q_BTKH.shape[:2], bool)
    q_BTNH, k_BTNH = (jnp.repeat(x, group, axis=2) for x in (q_BTKH, k_BTKH))
    tokens = (q_BTNH, k_BTNH, v_BTNP, writes.log_i_BTN, writes.log_f_BTN)
    tokens_TB = [jnp.moveaxis(a, 1, 0).astype(dtype) for a in tokens]
    memory, read_TB = jax.lax.scan(
        partial(_step, rules=rules),
        memory,
        (*tokens_TB, jnp.moveaxis(resets_BT, 1, 0)),
    )
    read = Read(*jax.tree.map(lambda x_TB: jnp.moveaxis(x_TB, 0, 1), read_TB))
    return read._replace(h_BTNP=read.h_BTNP.astype(q_BTKH.dtype)), memory


def _step(memory, token, *, rules):
    q_BNH, k_BNH, v_BNP, log_i_BN, log_f_BN, reset_B = token
    c_BNHP, n_BNH, m_BN = emptied(memory, reset_B)
    decay_BN, write_BN = jnp.exp(log_f_BN), log_i_BN
    if rules.stabilise:
        new_m_BN = jnp.maximum(log_f_BN + m_BN, log_i_BN)
        decay_BN = jnp.exp(log_f_BN + m_BN - new_m_BN)
        write_BN, m_BN = log_i_BN - new_m_BN, new_m_BN
    written_BNH = jnp.exp(write_BN)[..., None] * k_BNH
    outer_BNHP = written_BNH[..., :, None] * v_BNP[..., None, :]
    c_BNHP = decay_BN[..., None, None] * c_BNHP + outer_BNHP
    q_BNH = q_BNH * rules.scale
    one_BN = None
    h_BNP = jnp.einsum("bnhp,bnh->bnp", c_BNHP, q_BNH, precision="highest")
    if n_BNH is not None:
        n_BNH = decay_BN[..., None] * n_BNH + written_BNH
    if rules.normalize:
        dot_BN = jnp.einsum("bnh,bnh->bn", n_BNH, q_BNH, precision="highest")
        floor_BN = jnp.exp(-m_BN) if rules.stabilise else jnp.ones_like(dot_BN)
        divisor_BN = jnp.maximum(jnp.abs(dot_BN), floor_BN) + rules.eps
        h_BNP, one_BN = divided(h_BNP, divisor_BN, m_BN)
    return Memory(c_BNHP, n_BNH, m_BN), (h_BNP, one_BN)


def emptied(memory: Memory, reset_B: jax.Array, /) -> Memory:
    """Returns the memory, empty in the rows of the batch that are reset."""
    c_BNHP, n_BNH, m_BN = memory
    c_BNHP = jnp.where(reset_B[:, None, None, None], 0.0, c_BNHP)
    if n_BNH is not None:
        n_BNH = jnp.where(reset_B[:, None, None], 0.0, n_BNH)
    if m_BN is not None:
        m_BN = jnp.where(reset_B[:, None], EMPTY, m_BN)
    return Memory(c_BNHP, n_BNH, m_BN)
