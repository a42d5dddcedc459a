"""The matrix memory chunk by chunk, in plain JAX: O(T C), gradients by autodiff."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.matrix_memory.division import Read, divided
from pallas_kernels.matrix_memory.gates import (
    Gates,
    chunk_gates,
    cut,
    padded,
    runs_of,
)
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Rules, Writes
from pallas_kernels.matrix_memory.scale import finished, scaled

CHUNK = 64  # tokens
GROUP = 16  # chunks


def matrix_memory_chunked(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    writes: Writes,
    memory: Memory,
    /,
    *,
    rules: Rules,
) -> tuple[Read, Memory]:
    """Returns h and the memory after the last token; reference.py defines both.

    Source: Beck et al. 2025, arXiv:2503.14376, sections 2 and 3.
    """
    T, N = v_BTNP.shape[1:3]
    chunk, group = _sizes(T)
    pieces, start, m_BNT = _pieces(writes, memory, rules, chunk, group)

    def body(memory, inputs):
        *tokens, piece = inputs
        q, k, v = (_chunks(x_BTNH, chunk) for x_BTNH in tokens)
        memory, read_JBNC = _group(memory, q, k, v, piece, rules=rules)
        return memory, jax.tree.map(_tokens, read_JBNC)

    if chunk * group < T:  # a single group is kept, not computed again
        body = jax.checkpoint(body, prevent_cse=False)
    q_BTNH, k_BTNH = (per_head(x_BTKH, N) for x_BTKH in (q_BTKH, k_BTKH))
    tokens = (_groups(x, chunk * group) for x in (q_BTNH, k_BTNH, v_BTNP))
    carry = (start.c_BNHP, start.n_BNH)
    (c_BNHP, n_BNH), read_LBT = jax.lax.scan(body, carry, (*tokens, pieces))

    def whole(x_LBTN):
        x_BLTN = jnp.moveaxis(x_LBTN, 0, 1)
        return x_BLTN.reshape(x_BLTN.shape[0], -1, *x_BLTN.shape[3:])[:, :T]

    read = Read(*jax.tree.map(whole, read_LBT))
    return read, finished(Memory(c_BNHP, n_BNH, None), m_BNT)


def _sizes(length):
    """Returns the tokens of a chunk and the chunks of a group, all groups alike."""
    chunk = min(CHUNK, length)
    chunks = -(-length // chunk)
    groups = -(-chunks // GROUP)
    return chunk, -(-chunks // groups)


class _Piece(NamedTuple):
    """What a group of chunks needs beside its tokens; J chunks, first of all axes."""

    gates: Gates
    runs_JB1C: Any
    floor_JBNC: Any
    eps_JBNC: Any


def _pieces(writes, memory, rules, chunk, group):
    """Returns the pieces, a leading axis of groups before their axes, the memory before
    the first token, and the scale after each."""
    writes = padded(writes, chunk * group)
    log_i_BNT, log_f_BNT, m_BNT, start, floor_BNT, eps_BNT = scaled(
        writes, memory, rules
    )
    runs_B1JC = runs_of(writes.resets_BT, chunk)
    gates = chunk_gates(log_i_BNT, log_f_BNT, m_BNT, start.m_BN, runs_B1JC, chunk=chunk)
    divisor = (None if x is None else cut(x, chunk) for x in (floor_BNT, eps_BNT))

    def grouped(x_BNJC):
        x_JBNC = jnp.moveaxis(x_BNJC, 2, 0)
        return x_JBNC.reshape(-1, group, *x_JBNC.shape[1:])

    return jax.tree.map(grouped, _Piece(gates, runs_B1JC, *divisor)), start, m_BNT


def per_head(x_BTKH: jax.Array, heads: int, /) -> jax.Array:
    """Returns x_BTNH: each query/key head once for every value head that it serves."""
    return jnp.repeat(x_BTKH, heads // x_BTKH.shape[2], axis=2)


def _groups(x_BTNH, length):
    """Returns x_BTNH as LBTNH, L groups of `length` tokens, the last ones zero."""
    padding = [(0, 0)] * x_BTNH.ndim
    padding[1] = (0, -x_BTNH.shape[1] % length)
    x_BTNH = jnp.pad(x_BTNH, padding)
    x_BLTNH = x_BTNH.reshape(x_BTNH.shape[0], -1, length, *x_BTNH.shape[2:])
    return jnp.moveaxis(x_BLTNH, 1, 0)


def _chunks(x_BTNH, chunk):
    """Returns x_BTNH as JBNCH, J chunks of `chunk` tokens."""
    x_BJCNH = x_BTNH.reshape(x_BTNH.shape[0], -1, chunk, *x_BTNH.shape[2:])
    return x_BJCNH.transpose(1, 0, 3, 2, 4)


def _tokens(x_JBNC):
    """Returns x of chunks, with or without columns behind its tokens, as BTN."""
    x_BJCN = jnp.moveaxis(x_JBNC.swapaxes(2, 3), 0, 1)
    return x_BJCN.reshape(x_BJCN.shape[0], -1, *x_BJCN.shape[3:])


def _group(memory, q_JBNCH, k_JBNCH, v_JBNCP, piece, *, rules):
    """Returns C and n after a group of chunks, and the two factors of their h_JBNCP.

    The chunks of a group share every matmul; only the decay of the memory from chunk to
    chunk is sequential.
    """
    gates, k_JBNHC = piece.gates, k_JBNCH.swapaxes(-1, -2)
    written = _written(k_JBNHC, v_JBNCP, gates, normalised=memory[1] is not None)
    last, before = _decay(memory, jnp.exp(gates.keep), written)
    return last, _read(before, q_JBNCH, k_JBNHC, v_JBNCP, piece, rules=rules)


def _written(k_JBNHC, v_JBNCP, gates, *, normalised):
    """Returns what each chunk writes into C and n (None if not `normalised`).

    The sum of n is a product of its own: of weighted keys with one reader only XLA
    makes a part of their matmul.
    """
    wide_JBNHC, write_JBNC = k_JBNHC.astype(gates.row.dtype), jnp.exp(gates.write)
    weighted_JBNHC = wide_JBNHC * write_JBNC[..., None, :]
    c_JBNHP = _dot(weighted_JBNHC.astype(k_JBNHC.dtype), v_JBNCP)
    if not normalised:
        return c_JBNHP, None
    n_JBNH = jnp.einsum("jbnhc,jbnc->jbnh", wide_JBNHC, write_JBNC, precision="highest")
    return c_JBNHP, n_JBNH


def _read(before, q_JBNCH, k_JBNHC, v_JBNCP, piece, *, rules):
    """Returns the two factors of h_JBNCP, given C and n before each chunk.

    The memory's share takes its weight after the matmul: one pass over h adds, weighs
    and divides, and the queries need no copy.
    """
    (c_JBNHP, n_JBNH), gates = before, piece.gates
    within_JBNCC = jnp.exp(_within(gates, piece.runs_JB1C))
    scores_JBNCC = _dot(q_JBNCH, k_JBNHC) * (rules.scale * within_JBNCC)
    old_JBNC = rules.scale * jnp.exp(gates.old)
    h_JBNCP = _dot(scores_JBNCC, v_JBNCP)
    h_JBNCP += old_JBNC[..., None] * _dot(q_JBNCH, c_JBNHP)
    one_JBNC = None
    if rules.normalize:
        wide_JBNCH = q_JBNCH.astype(old_JBNC.dtype)
        n_q_JBNC = jnp.einsum(
            "jbnch,jbnh->jbnc", wide_JBNCH, n_JBNH, precision="highest"
        )
        divisor_JBNC = jnp.sum(scores_JBNCC, axis=-1) + old_JBNC * n_q_JBNC
        divisor_JBNC = jnp.maximum(jnp.abs(divisor_JBNC), piece.floor_JBNC)
        h_JBNCP, one_JBNC = divided(h_JBNCP, divisor_JBNC + piece.eps_JBNC)
    return h_JBNCP.astype(q_JBNCH.dtype), one_JBNC


def _within(gates, runs_JB1C):
    """Returns the logarithm of the weight of token s in the output at t, JBNCC, EMPTY
    where nothing passes."""
    within_JBNCC = gates.row[..., :, None] + gates.column[..., None, :]
    within_JBNCC += gates.coarse[..., :, None] - gates.coarse[..., None, :]
    C = within_JBNCC.shape[-1]
    within_JBNCC = jnp.where(
        jnp.eye(C, dtype=bool)[None, None, None], gates.own[..., None], within_JBNCC
    )
    seen_JBNCC = jnp.tril(jnp.ones((C, C), bool))[None, None, None]
    if runs_JB1C is not None:
        seen_JBNCC = seen_JBNCC & (runs_JB1C[..., :, None] == runs_JB1C[..., None, :])
    return jnp.where(seen_JBNCC, within_JBNCC, EMPTY)


def _decay(memory, keep_JBN, written):
    """Returns c and n after the last chunk, and c_JBNHP and n_JBNH before each."""

    def chunk(before, inputs):
        keep_BN, written = inputs
        after = jax.tree.map(
            lambda x, new: (
                keep_BN.reshape(*keep_BN.shape, *(1,) * (x.ndim - 2)) * x + new
            ),
            before,
            written,
        )
        return after, before

    return jax.lax.scan(chunk, memory, (keep_JBN, written))


def _dot(x, y):
    """Returns x @ y: inputs in the narrower dtype, sums in a wide one."""
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.matmul(
        x.astype(narrow),
        y.astype(narrow),
        preferred_element_type=accumulation_dtype(narrow),
        precision=None if narrow == jnp.bfloat16 else "highest",
    )
