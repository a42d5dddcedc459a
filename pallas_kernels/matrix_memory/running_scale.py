"""m_t = max(log f_t + m_{t-1}, log i_t), block by block, and its derivative.

As one associative scan over the tokens it was most of the program that XLA compiled for
an mLSTM. In blocks of C tokens it is a few operations on C x C weights, and such a scan
over the blocks.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory.gates import decay_sums, runs_of
from pallas_kernels.matrix_memory.memory import EMPTY

BLOCK = 64  # tokens


@jax.custom_jvp
def running_scale(
    log_i_BNT: jax.Array,
    log_f_BNT: jax.Array,
    resets_BT: jax.Array | None,
    m_BN: jax.Array,
    /,
) -> jax.Array:
    """Returns m_t = max(log f_t + m_{t-1}, log i_t), of shape BNT, restarted by every
    reset; at least EMPTY. `m_BN` is the one before the first token."""
    own_BNJC, kept_BNJC = _of_blocks(log_i_BNT, log_f_BNT, resets_BT)
    m_BN1 = jnp.maximum(m_BN, EMPTY)[..., None]
    if own_BNJC.shape[2] > 1:
        last = (own_BNJC[..., :-1, -1], kept_BNJC[..., :-1, -1])
        own_BNJ, kept_BNJ = jax.lax.associative_scan(_joined, last, axis=-1)
        m_BNJ = jnp.maximum(kept_BNJ + m_BN1, own_BNJ)
        m_BN1 = jnp.concatenate([m_BN1, m_BNJ], axis=-1)
    m_BNJC = jnp.maximum(kept_BNJC + m_BN1[..., None], own_BNJC)
    return _tokens(m_BNJC, log_i_BNT.shape[-1])


@running_scale.defjvp
def _derivative(primals, tangents):
    """Returns the scale and its tangent: that of the log i which it is, plus those of
    the log f since."""
    log_i_BNT, log_f_BNT, resets_BT, m_BN = primals
    dlog_i_BNT, dlog_f_BNT, _, dm_BN = tangents
    m_BNT = running_scale(*primals)
    before_BNT = jnp.concatenate([m_BN[..., None], m_BNT[..., :-1]], axis=-1)
    starts_BNT = log_i_BNT >= log_f_BNT + before_BNT
    if resets_BT is not None:
        starts_BNT |= resets_BT[:, None]
    terms_BNT = jnp.where(starts_BNT, dlog_i_BNT, dlog_f_BNT)
    sums_BNT, open_BNT = _sums_of_runs(terms_BNT, starts_BNT)
    return m_BNT, sums_BNT + jnp.where(open_BNT, dm_BN[..., None], 0.0)


def _of_blocks(log_i_BNT, log_f_BNT, resets_BT):
    """Returns the scale of what a block's tokens have written alone, and the logarithm
    of what they keep of the memory before it, both BNJC and at least EMPTY."""
    log_i_BNJC = jnp.maximum(_blocks(log_i_BNT, EMPTY), EMPTY)
    log_f_BNJC = _blocks(log_f_BNT, 0)
    C = log_f_BNJC.shape[-1]
    runs_B1JC = None
    if resets_BT is not None:
        runs_B1JC = runs_of(_blocks(resets_BT, False).reshape(len(resets_BT), -1), C)
    (small_BNJC, _), (coarse_BNJC, _) = decay_sums(log_f_BNJC, runs_B1JC)
    pairs_BNJCC = coarse_BNJC[..., :, None] - coarse_BNJC[..., None, :]
    pairs_BNJCC += small_BNJC[..., :, None] + (log_i_BNJC - small_BNJC)[..., None, :]
    kept_BNJC = jnp.maximum(coarse_BNJC + small_BNJC, EMPTY)
    seen_BNJCC = jnp.tri(C, dtype=bool)[None, None, None]
    if runs_B1JC is not None:
        seen_BNJCC &= runs_B1JC[..., :, None] == runs_B1JC[..., None, :]
        kept_BNJC = jnp.where(runs_B1JC == 0, kept_BNJC, EMPTY)
    own_BNJC = jnp.max(jnp.where(seen_BNJCC, pairs_BNJCC, EMPTY), axis=-1)
    return own_BNJC, kept_BNJC


def _joined(left, right):
    """Returns what two neighbouring stretches of tokens are together."""
    (left_own, left_kept), (own, kept) = left, right
    own = jnp.maximum(jnp.maximum(kept + left_own, own), EMPTY)
    return own, jnp.maximum(left_kept + kept, EMPTY)


def _sums_of_runs(x_BNT, starts_BNT):
    """Returns the sums of x from the last start to each token, and where none has come:
    there from the first token. Linear in x, as matmuls with zeros and ones."""
    T = x_BNT.shape[-1]
    x_BNJC, starts_BNJC = _blocks(x_BNT, 0), _blocks(starts_BNT, False)
    runs_BNJC = jnp.cumsum(starts_BNJC, axis=-1, dtype=jnp.int32)
    same_BNJCC = runs_BNJC[..., :, None] == runs_BNJC[..., None, :]
    same_BNJCC &= jnp.tri(x_BNJC.shape[-1], dtype=bool)[None, None, None]
    sums_BNJC = jnp.einsum(
        "bnjts,bnjs->bnjt", same_BNJCC.astype(x_BNT.dtype), x_BNJC, precision="highest"
    )
    open_BNJC = runs_BNJC == 0
    if x_BNJC.shape[2] > 1:
        started_BNJ = ~open_BNJC[..., :-1, -1]
        before_BNJ, open_BNJ = _sums_of_runs(sums_BNJC[..., :-1, -1], started_BNJ)
        before_BNJ, open_BNJ = (
            jnp.pad(x, ((0, 0), (0, 0), (1, 0)), constant_values=first)
            for x, first in ((before_BNJ, 0), (open_BNJ, True))
        )
        sums_BNJC += jnp.where(open_BNJC, before_BNJ[..., None], 0.0)
        open_BNJC &= open_BNJ[..., None]
    return _tokens(sums_BNJC, T), _tokens(open_BNJC, T)


def _blocks(x_T, fill):
    """Returns x in blocks, x_JC, the last one filled up."""
    block = min(BLOCK, x_T.shape[-1])
    padding = [(0, 0)] * x_T.ndim
    padding[-1] = (0, -x_T.shape[-1] % block)
    x_T = jnp.pad(x_T, padding, constant_values=fill)
    return x_T.reshape(*x_T.shape[:-1], -1, block)


def _tokens(x_JC, length):
    """Returns that many tokens of blocks."""
    return x_JC.reshape(*x_JC.shape[:-2], -1)[..., :length]
