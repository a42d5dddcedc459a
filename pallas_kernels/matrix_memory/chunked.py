"""The matrix memory chunk by chunk, in plain JAX: O(T C), gradients by autodiff."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.chunks import chunk_by_chunk, sizes
from pallas_kernels.matrix_memory.division import Read, divided
from pallas_kernels.matrix_memory.gates import (
    Gates,
    chunk_gates,
    cut,
    padded,
    runs_of,
    within,
)
from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.scale import finished, scaled

CHUNK = 64  # tokens
GROUP = 4  # chunks
AT_ONCE = 4  # groups


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
    pieces, start, m_BNT = _pieces(writes, memory, rules, *sizes(T, CHUNK, GROUP))
    q_BTNH, k_BTNH = (per_head(x_BTKH, N) for x_BTKH in (q_BTKH, k_BTKH))
    read, (c_BNHP, n_BNH) = chunk_by_chunk(
        partial(_group, rules=rules),
        (start.c_BNHP, start.n_BNH),
        (q_BTNH, k_BTNH, v_BTNP),
        (pieces,),
        chunk=CHUNK,
        group=GROUP,
        at_once=AT_ONCE,
    )
    return Read(*read), finished(Memory(c_BNHP, n_BNH, None), m_BNT)


class _Piece(NamedTuple):
    """What chunks need beside their tokens: of shape BNJC, in a group of them JBNC."""

    gates: Gates
    runs: Any
    floor: Any
    eps: Any


def _pieces(writes, memory, rules, chunk, group):
    """Returns the pieces, the memory before the first token, and the scale after
    each."""
    writes = padded(writes, chunk * group)
    log_i_BNT, log_f_BNT, m_BNT, start, floor_BNT, eps_BNT = scaled(
        writes, memory, rules
    )
    runs_B1JC = runs_of(writes.resets_BT, chunk)
    gates = chunk_gates(log_i_BNT, log_f_BNT, m_BNT, start.m_BN, runs_B1JC, chunk=chunk)
    divisor = (None if x is None else cut(x, chunk) for x in (floor_BNT, eps_BNT))
    return _Piece(gates, runs_B1JC, *divisor), start, m_BNT


def per_head(x_BTKH: jax.Array, heads: int, /) -> jax.Array:
    """Returns x_BTNH: each query/key head once for every value head that it serves."""
    return jnp.repeat(x_BTKH, heads // x_BTKH.shape[2], axis=2)


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
    n_JBNH = jnp.einsum("...hc,...c->...h", wide_JBNHC, write_JBNC, precision="highest")
    return c_JBNHP, n_JBNH


def _read(before, q_JBNCH, k_JBNHC, v_JBNCP, piece, *, rules):
    """Returns the two factors of h_JBNCP, given C and n before each chunk.

    The memory's share takes its weight after the matmul: one pass over h adds, weighs
    and divides, and the queries need no copy.
    """
    (c_JBNHP, n_JBNH), gates = before, piece.gates
    within_JBNCC = jnp.exp(within(gates, piece.runs))
    scores_JBNCC = _dot(q_JBNCH, k_JBNHC) * (rules.scale * within_JBNCC)
    old_JBNC = rules.scale * jnp.exp(gates.old)
    h_JBNCP = _dot(scores_JBNCC, v_JBNCP)
    h_JBNCP += old_JBNC[..., None] * _dot(q_JBNCH, c_JBNHP)
    one_JBNC = None
    if rules.normalize:
        wide_JBNCH = q_JBNCH.astype(old_JBNC.dtype)
        n_q_JBNC = jnp.einsum(
            "...ch,...h->...c", wide_JBNCH, n_JBNH, precision="highest"
        )
        divisor_JBNC = jnp.sum(scores_JBNCC, axis=-1) + old_JBNC * n_q_JBNC
        divisor_JBNC = jnp.maximum(jnp.abs(divisor_JBNC), piece.floor)
        h_JBNCP, one_JBNC = divided(h_JBNCP, divisor_JBNC + piece.eps)
    return h_JBNCP.astype(q_JBNCH.dtype), one_JBNC


def _decay(memory, keep_JBN, written):
    """Returns c and n after the last chunk, and c_JBNHP and n_JBNH before each."""

    def chunk(before, inputs):
        keep_BN, written = inputs
        after = jax.tree.map(
            lambda x, new: (
                keep_BN.reshape(*keep_BN.shape, *(1,) * (x.ndim - keep_BN.ndim)) * x
                + new
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
