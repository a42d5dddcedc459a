"""The mLSTM chunk by chunk, in plain JAX: time O(T C), exact gradients by autodiff.

The scale m of the memory is a maximum-plus recurrence over scalars, computed first.
Every other quantity is linear in the memory, so the scale cancels in h but for eps: the
scan over the chunks takes it as a constant, and the two places where it does count (eps
and the scale of the last state) carry its derivative. That spares the backward pass
sums of large terms that cancel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.mlstm.state import EMPTY, MLSTMState

CHUNK = 64  # tokens
GROUP = 8  # chunks
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
    chunk, group = _sizes(T)
    gates = _gates(
        log_i_BTN, log_f_BTN, resets_BT, state.m_BN, chunk, group, stabilise, eps
    )
    m_BN = jnp.maximum(state.m_BN, EMPTY) if stabilise else jnp.zeros_like(state.m_BN)
    fixed_m_BN = jax.lax.stop_gradient(m_BN)
    rescale_BN = jnp.exp(m_BN - fixed_m_BN)  # one, with the derivative of m
    memory = _Memory(
        state.c_BNHP * rescale_BN[..., None, None],
        state.n_BNH * rescale_BN[..., None],
        fixed_m_BN,
    )

    def body(memory, inputs):
        *tokens, gates = inputs
        q, k, v = (_chunks(x_BTNH, chunk) for x_BTNH in tokens)
        memory, h_JBNCP = _group(memory, q, k, v, gates, normalize=normalize)
        h_BJCNP = h_JBNCP.transpose(1, 0, 3, 2, 4)
        return memory, h_BJCNP.reshape(h_BJCNP.shape[0], -1, *h_BJCNP.shape[3:])

    if chunk * group < T:  # a single group is kept, not computed again
        body = jax.checkpoint(body, prevent_cse=False)
    tokens = (_groups(x, chunk * group) for x in (q_BTNH, k_BTNH, v_BTNP))
    grouped = jax.tree.map(lambda a: a.reshape(-1, group, *a.shape[1:]), gates)
    memory, h_LBTNP = jax.lax.scan(body, memory, (*tokens, grouped))
    h_BLTNP = jnp.moveaxis(h_LBTNP, 0, 1)
    h_BTNP = h_BLTNP.reshape(h_BLTNP.shape[0], -1, *h_BLTNP.shape[3:])
    last = _last_state(memory, gates.m_JBNC[-1, ..., -1], state.segment_id_B)
    return h_BTNP[:, :T], last


def _sizes(length):
    """Returns the tokens of a chunk and the chunks of a group, all groups alike."""
    chunk = min(CHUNK, length)
    chunks = -(-length // chunk)
    groups = -(-chunks // GROUP)
    return chunk, -(-chunks // groups)


class _Memory(NamedTuple):
    """The memory before a chunk, at the scale m, which has no derivative."""

    c_BNHP: jax.Array
    n_BNH: jax.Array
    m_BN: jax.Array


def _last_state(memory, m_BN, segment_id_B):
    """Returns the state, whose scale m now has a derivative."""
    rescale_BN = jnp.exp(memory.m_BN - m_BN)
    c_BNHP = memory.c_BNHP * rescale_BN[..., None, None]
    return MLSTMState(c_BNHP, memory.n_BNH * rescale_BN[..., None], m_BN, segment_id_B)


class _Gates(NamedTuple):
    """The gates of every chunk: all that is known before the memory is.

    `decay` is the sum of log f from the chunk's start, `runs` the number of resets
    since then (None without resets), `m` the scale and `eps` the scaled eps.
    """

    log_i_JBNC: jax.Array
    decay_JBNC: jax.Array
    runs_JBNC: jax.Array | None
    m_JBNC: jax.Array
    eps_JBNC: jax.Array


def _gates(log_i_BTN, log_f_BTN, resets_BT, m_BN, chunk, group, stabilise, eps):
    """Returns the gates in chunks, padded with tokens that write nothing."""

    def cut(x_BTN, fill):
        return _chunks(_padded(x_BTN, chunk * group, fill)[..., None], chunk)[..., 0]

    log_i_JBNC, log_f_JBNC = cut(log_i_BTN, EMPTY), cut(log_f_BTN, 0)
    runs_JBNC = None
    if resets_BT is not None:
        resets_JBNC = cut(resets_BT[..., None], fill=0)
        runs_JBNC = jnp.cumsum(resets_JBNC, axis=-1, dtype=jnp.int32)
    m_JBNC = jnp.zeros_like(log_i_JBNC)
    if stabilise:
        m_BN = jnp.maximum(m_BN, EMPTY)
        m_JBNC = _running_scale(log_i_JBNC, log_f_JBNC, runs_JBNC, m_BN)
    scaled_eps_JBNC = eps * jnp.exp(m_JBNC - jax.lax.stop_gradient(m_JBNC))
    decay_JBNC = _running_sum(log_f_JBNC)
    return _Gates(log_i_JBNC, decay_JBNC, runs_JBNC, m_JBNC, scaled_eps_JBNC)


def _padded(x_BTN, length, fill):
    """Returns x with `fill` behind it, up to a multiple of `length` tokens."""
    padding = [(0, 0)] * x_BTN.ndim
    padding[1] = (0, -x_BTN.shape[1] % length)
    return jnp.pad(x_BTN, padding, constant_values=fill)


def _groups(x_BTNH, length):
    """Returns x_BTNH as LBTNH, L groups of `length` tokens."""
    x_BTNH = _padded(x_BTNH, length, 0)
    x_BLTNH = x_BTNH.reshape(x_BTNH.shape[0], -1, length, *x_BTNH.shape[2:])
    return jnp.moveaxis(x_BLTNH, 1, 0)


def _chunks(x_BTNH, chunk):
    """Returns x_BTNH as JBNCH, J chunks of `chunk` tokens."""
    x_BJCNH = x_BTNH.reshape(x_BTNH.shape[0], -1, chunk, *x_BTNH.shape[2:])
    return x_BJCNH.transpose(1, 0, 3, 2, 4)


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


def _group(memory, q_JBNCH, k_JBNCH, v_JBNCP, gates, *, normalize):
    """Returns the memory after a group of chunks and their outputs h_JBNCP.

    The chunks of a group share every matmul; only the decay of the memory from chunk to
    chunk is sequential.
    """
    H = q_JBNCH.shape[-1]
    dtype = memory.c_BNHP.dtype
    m_JBNC = jax.lax.stop_gradient(gates.m_JBNC)
    within_JBNCC, old_JBNC, write_JBNC = _exponents(gates, m_JBNC, memory.m_BN)
    k_JBNHC = k_JBNCH.swapaxes(-1, -2)
    k_write_JBNHC = k_JBNHC.astype(dtype) * jnp.exp(write_JBNC)[..., None, :]
    written_JBNHP = _dot(k_write_JBNHC.astype(k_JBNCH.dtype), v_JBNCP)
    written = (written_JBNHP, jnp.sum(k_write_JBNHC, axis=-1))
    last, (c_JBNHP, n_JBNH) = _decay(memory, jnp.exp(old_JBNC[..., -1]), written)

    scores_JBNCC = _dot(q_JBNCH, k_JBNHC) * (H**-0.5 * jnp.exp(within_JBNCC))
    q_old_JBNCH = q_JBNCH.astype(dtype) * (H**-0.5 * jnp.exp(old_JBNC))[..., None]
    h_JBNCP = _dot(scores_JBNCC, v_JBNCP)
    h_JBNCP += _dot(q_old_JBNCH.astype(q_JBNCH.dtype), c_JBNHP)
    if normalize:
        divisor_JBNC = jnp.sum(scores_JBNCC, axis=-1)
        divisor_JBNC += jnp.einsum(
            "jbnch,jbnh->jbnc", q_old_JBNCH, n_JBNH, precision="highest"
        )
        floor_JBNC = jnp.exp(jnp.minimum(-m_JBNC, LARGEST_EXPONENT))
        divisor_JBNC = jnp.maximum(jnp.abs(divisor_JBNC), floor_JBNC)
        h_JBNCP /= (divisor_JBNC + gates.eps_JBNC)[..., None]
    return _Memory(*last, m_JBNC[-1, ..., -1]), h_JBNCP.astype(q_JBNCH.dtype)


def _exponents(gates, m_JBNC, m_BN):
    """Returns the logarithms of three weights, EMPTY where nothing passes: of token s
    in the output at t (JBNCC), of the memory before the chunk in the output at t, and
    of token s in the memory after the chunk (JBNC)."""
    log_i_JBNC, decay_JBNC, runs_JBNC, _, _ = gates
    C = m_JBNC.shape[-1]
    before_JBN = jnp.concatenate([m_BN[None], m_JBNC[:-1, ..., -1]])
    within_JBNCC = decay_JBNC[..., :, None] + (log_i_JBNC - decay_JBNC)[..., None, :]
    within_JBNCC = within_JBNCC - m_JBNC[..., :, None]
    old_JBNC = decay_JBNC + before_JBN[..., None] - m_JBNC
    write_JBNC = decay_JBNC[..., -1:] - decay_JBNC + log_i_JBNC - m_JBNC[..., -1:]
    seen_JBNCC = jnp.tril(jnp.ones((C, C), bool))[None, None, None]
    if runs_JBNC is not None:
        seen_JBNCC = seen_JBNCC & (runs_JBNC[..., :, None] == runs_JBNC[..., None, :])
        old_JBNC = jnp.where(runs_JBNC == 0, old_JBNC, EMPTY)
        write_JBNC = jnp.where(runs_JBNC == runs_JBNC[..., -1:], write_JBNC, EMPTY)
    return jnp.where(seen_JBNCC, within_JBNCC, EMPTY), old_JBNC, write_JBNC


def _decay(memory, keep_JBN, written):
    """Returns c and n after the last chunk, and c_JBNHP and n_JBNH before each."""

    def chunk(before, inputs):
        c_BNHP, n_BNH = before
        keep_BN, (written_BNHP, written_BNH) = inputs
        c_BNHP = keep_BN[..., None, None] * c_BNHP + written_BNHP
        return (c_BNHP, keep_BN[..., None] * n_BNH + written_BNH), before

    return jax.lax.scan(chunk, (memory.c_BNHP, memory.n_BNH), (keep_JBN, written))


def _dot(x, y):
    """Returns x @ y: inputs in the narrower dtype, sums in a wide one."""
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.matmul(
        x.astype(narrow),
        y.astype(narrow),
        preferred_element_type=accumulation_dtype(narrow),
        precision=None if narrow == jnp.bfloat16 else "highest",
    )
