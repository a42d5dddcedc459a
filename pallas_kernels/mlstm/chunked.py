"""The mLSTM chunk by chunk, in plain JAX: time O(T C), exact gradients by autodiff.

The scale m of the memory is a maximum-plus recurrence over scalars, computed first.
Every other quantity is linear in the memory, so the scale cancels in h but for eps: the
scan over the chunks takes it as a constant, and the two places where it does count (eps
and the scale of the last state) carry its derivative. That spares the backward pass
sums of large terms that cancel.
"""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.mlstm.state import EMPTY, MLSTMState

CHUNK = 64  # tokens
GROUP = 16  # chunks
LARGEST_EXPONENT = 80.0  # exp(80) is finite in float32; h is zero there in any case


def mlstm_chunked(
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
    """Returns h_BTNP and the last state; the definition is in reference.py.

    Source: Beck et al. 2025, arXiv:2503.14376, sections 2 and 3.
    """
    T = q_BTNH.shape[1]
    chunk = min(CHUNK, T)
    group = min(GROUP, -(-T // chunk))
    cut = partial(_chunks, chunk=chunk, group=group)
    # A value of one behind the others: the normaliser is the memory's last column.
    ones_BTN1 = jnp.ones_like(v_BTNP[..., :1])
    v_BTNQ = jnp.concatenate([v_BTNP, ones_BTN1], axis=-1)
    q_JBNCH, k_JBNCH, v_JBNCQ = (cut(a, fill=0) for a in (q_BTNH, k_BTNH, v_BTNQ))
    log_i_JBNC = cut(log_i_BTN, fill=EMPTY)
    log_f_JBNC = cut(log_f_BTN, fill=0)
    runs_JBNC = None
    if resets_BT is not None:
        runs_JBNC = jnp.cumsum(
            cut(resets_BT[..., None], fill=0), axis=-1, dtype=jnp.int32
        )
    decay_JBNC = _running_sum(log_f_JBNC)
    if stabilise:
        m_BN = jnp.maximum(state.m_BN, EMPTY)
        m_JBNC = _running_scale(log_i_JBNC, log_f_JBNC, runs_JBNC, m_BN)
    else:
        m_BN, m_JBNC = jnp.zeros_like(state.m_BN), jnp.zeros_like(log_i_JBNC)
    fixed_m_JBNC = jax.lax.stop_gradient(m_JBNC)
    fixed_m_BN = jax.lax.stop_gradient(m_BN)
    rescale_BN = jnp.exp(m_BN - fixed_m_BN)  # one, with the derivative of m
    memory_BNHQ = jnp.concatenate([state.c_BNHP, state.n_BNH[..., None]], axis=-1)
    memory = (memory_BNHQ * rescale_BN[..., None, None], fixed_m_BN)
    scaled_eps_JBNC = eps * jnp.exp(m_JBNC - fixed_m_JBNC)
    gates = (log_i_JBNC, decay_JBNC, runs_JBNC, fixed_m_JBNC, scaled_eps_JBNC)
    body = jax.checkpoint(
        lambda c, x: _group(c, *x, normalize=normalize), prevent_cse=False
    )
    inputs = (q_JBNCH, k_JBNCH, v_JBNCQ, gates)
    inputs = jax.tree.map(lambda a: a.reshape(-1, group, *a.shape[1:]), inputs)
    (memory_BNHQ, _), h_LJBNCP = jax.lax.scan(body, memory, inputs)
    h_JBNCP = h_LJBNCP.reshape(-1, *h_LJBNCP.shape[2:])
    rescale_BN = jnp.exp(fixed_m_JBNC[-1, ..., -1] - m_JBNC[-1, ..., -1])
    memory_BNHQ = memory_BNHQ * rescale_BN[..., None, None]
    last = MLSTMState(
        memory_BNHQ[..., :-1],
        memory_BNHQ[..., -1],
        m_JBNC[-1, ..., -1],
        state.segment_id_B,
    )
    h_BJCNP = h_JBNCP.transpose(1, 0, 3, 2, 4)
    h_BTNP = h_BJCNP.reshape(h_BJCNP.shape[0], -1, *h_BJCNP.shape[3:])
    return h_BTNP[:, :T], last


def _chunks(x_BTN, *, chunk, group, fill):
    """Returns x_BTN... as JBNC..., padded with `fill` to whole groups."""
    padding = [(0, 0)] * x_BTN.ndim
    padding[1] = (0, -x_BTN.shape[1] % (chunk * group))
    x_BTN = jnp.pad(x_BTN, padding, constant_values=fill)
    x_BJCN = x_BTN.reshape(x_BTN.shape[0], -1, chunk, *x_BTN.shape[2:])
    return jnp.moveaxis(x_BJCN, (1, 0, 3, 2), (0, 1, 2, 3))


def _running_sum(x_JBNC):
    """Returns the sums of x over each chunk up to and with each token.

    A triangular matmul, whose transpose is the sum from each token to the chunk's end:
    no sum in the backward pass runs over more than a chunk.
    """
    C = x_JBNC.shape[-1]
    upper_CC = jnp.triu(jnp.ones((C, C), x_JBNC.dtype))
    return jnp.einsum("jbns,sc->jbnc", x_JBNC, upper_CC, precision="highest")


def _running_scale(log_i_JBNC, log_f_JBNC, runs_JBNC, m_BN):
    """Returns m_t = max(log f_t + m_{t-1}, log i_t), restarted by every reset.

    Within all chunks at once, token after token, first; then from chunk to chunk.
    """
    if runs_JBNC is not None:
        before_JBNC = jnp.pad(runs_JBNC, [(0, 0)] * 3 + [(1, 0)])[..., :-1]
        log_f_JBNC = jnp.where(runs_JBNC > before_JBNC, EMPTY, log_f_JBNC)

    def token(carry, gates):
        decay_JBN, m_JBN = carry
        log_i_JBN, log_f_JBN = gates
        m_JBN = jnp.maximum(log_f_JBN + m_JBN, log_i_JBN)
        carry = jnp.maximum(decay_JBN + log_f_JBN, EMPTY), jnp.maximum(m_JBN, EMPTY)
        return carry, carry

    zeros_JBN = jnp.zeros_like(log_i_JBNC[..., 0])
    gates = jnp.moveaxis(log_i_JBNC, -1, 0), jnp.moveaxis(log_f_JBNC, -1, 0)
    empty = (zeros_JBN, jnp.full_like(zeros_JBN, EMPTY))
    _, (decay_CJBN, m_CJBN) = jax.lax.scan(token, empty, gates)

    def chunk(m_BN, ends):
        decay_BN, own_m_BN = ends
        return jnp.maximum(decay_BN + m_BN, own_m_BN), m_BN

    _, before_JBN = jax.lax.scan(chunk, m_BN, (decay_CJBN[-1], m_CJBN[-1]))
    return jnp.moveaxis(jnp.maximum(decay_CJBN + before_JBN[None], m_CJBN), 0, -1)


def _group(memory, q_JBNCH, k_JBNCH, v_JBNCQ, gates, *, normalize):
    """Returns the memory after a group of chunks and their outputs h_JBNCP.

    The chunks of a group share every matmul; only the decay of the memory from chunk to
    chunk is sequential.
    """
    log_i_JBNC, decay_JBNC, runs_JBNC, m_JBNC, eps_JBNC = gates
    dtype = memory[0].dtype
    m_JBN = m_JBNC[..., -1]
    before_m_JBN = jnp.concatenate([memory[1][None], m_JBN[:-1]])
    # Exponents: token s in the output at t, old memory at t, s in the new memory.
    within_JBNCC = decay_JBNC[..., :, None] + (log_i_JBNC - decay_JBNC)[..., None, :]
    within_JBNCC = within_JBNCC - m_JBNC[..., :, None]
    old_JBNC = decay_JBNC + before_m_JBN[..., None] - m_JBNC
    write_JBNC = decay_JBNC[..., -1:] - decay_JBNC + log_i_JBNC - m_JBN[..., None]
    C, H = q_JBNCH.shape[-2:]
    seen_JBNCC = jnp.tril(jnp.ones((C, C), bool))[None, None, None]
    if runs_JBNC is not None:
        seen_JBNCC = seen_JBNCC & (runs_JBNC[..., :, None] == runs_JBNC[..., None, :])
        old_JBNC = jnp.where(runs_JBNC == 0, old_JBNC, EMPTY)
        write_JBNC = jnp.where(runs_JBNC == runs_JBNC[..., -1:], write_JBNC, EMPTY)

    k_write_JBNCH = k_JBNCH.astype(dtype) * jnp.exp(write_JBNC)[..., None]
    written_JBNHQ = _dot(
        "...sh,...sq->...hq", k_write_JBNCH.astype(v_JBNCQ.dtype), v_JBNCQ
    )
    last_BNHQ, c_JBNHQ = _decay(memory[0], jnp.exp(old_JBNC[..., -1]), written_JBNHQ)

    weight_JBNCC = jnp.exp(jnp.where(seen_JBNCC, within_JBNCC, EMPTY)) * H**-0.5
    scores_JBNCC = _dot("...th,...sh->...ts", q_JBNCH, k_JBNCH) * weight_JBNCC
    q_old_JBNCH = q_JBNCH.astype(dtype) * (H**-0.5 * jnp.exp(old_JBNC))[..., None]
    h_JBNCQ = _dot("...ts,...sq->...tq", scores_JBNCC, v_JBNCQ)
    h_JBNCQ += _dot("...th,...hq->...tq", q_old_JBNCH.astype(q_JBNCH.dtype), c_JBNHQ)
    h_JBNCP = h_JBNCQ[..., :-1]
    if normalize:
        floor_JBNC = jnp.exp(jnp.minimum(-m_JBNC, LARGEST_EXPONENT))
        divisor_JBNC = jnp.maximum(jnp.abs(h_JBNCQ[..., -1]), floor_JBNC) + eps_JBNC
        h_JBNCP /= divisor_JBNC[..., None]
    return (last_BNHQ, m_JBN[-1]), h_JBNCP.astype(q_JBNCH.dtype)


def _decay(memory_BNHQ, keep_JBN, written_JBNHQ):
    """Returns the memory after the last chunk, and the memory before each chunk."""

    def chunk(memory_BNHQ, inputs):
        keep_BN, written_BNHQ = inputs
        return keep_BN[..., None, None] * memory_BNHQ + written_BNHQ, memory_BNHQ

    return jax.lax.scan(chunk, memory_BNHQ, (keep_JBN, written_JBNHQ))


def _dot(equation, x, y):
    """Returns the contraction: inputs in the narrower dtype, sums in a wide one."""
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        equation,
        x.astype(narrow),
        y.astype(narrow),
        preferred_element_type=accumulation_dtype(narrow),
        precision=None if narrow == jnp.bfloat16 else "highest",
    )
