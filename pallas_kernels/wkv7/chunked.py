"""The memory of RWKV-7 chunk by chunk, in plain JAX: O(T C), gradients by autodiff.

With u_t = S_{t-1}^T a_t the memory is linear attention of two writes per token,
S_t = diag(w_t) S_{t-1} + b_t u_t^T + k_t v_t^T. What the a of a chunk read solves a
unit lower triangular system: S_0 being the memory before the chunk, A_xy the products
of rows x and columns y under the decays between their tokens, strict where x = a,

U = (I - A_ab)^{-1} (A_ak V + read(a) S_0), and out = A_rb U + A_rk V + read(r) S_0.

This is the WY form (Bischof & Van Loan 1987) of a product of matrices diag(w) + b a^T.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.channel_decay import (
    EMPTIED,
    channel_decay,
    dot,
    products,
    products_before,
    read_before,
    weighted,
)
from pallas_kernels.chunks import chunk_by_chunk
from pallas_kernels.unit_lower import unit_lower_inverse

CHUNK = 64  # tokens
GROUP = 4  # chunks


def wkv7_chunked(
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
    """Returns out_BTNP and the memory after the last token; reference.py defines both.

    `log_decay_BTNH` and the memory are in the dtype of accumulation.
    """
    if resets_BT is not None:  # an emptied memory shows nothing to a, and keeps nothing
        resets_BT11 = resets_BT[..., None, None]
        a_BTNH = jnp.where(resets_BT11, 0.0, a_BTNH)
        log_decay_BTNH = jnp.where(resets_BT11, EMPTIED, log_decay_BTNH)
    tokens = (r_BTNH, log_decay_BTNH, k_BTNH, v_BTNP, a_BTNH, b_BTNH)
    return chunk_by_chunk(_group, s_BNHP, tokens, chunk=CHUNK, group=GROUP)


def _group(s_BNHP, r_JBNCH, log_decay_JBNCH, k_JBNCH, v_JBNCP, a_JBNCH, b_JBNCH):
    """Returns the memory after a group of chunks, and their outputs out_JBNCP.

    The chunks share every matmul but the two that carry the memory from one to the
    next.
    """
    decay = channel_decay(log_decay_JBNCH)
    inverse_JBNCC = unit_lower_inverse(-products_before(decay, a_JBNCH, b_JBNCH))
    own_JBNCP = _read(products_before(decay, a_JBNCH, k_JBNCH), v_JBNCP)
    own_JBNCP = _read(inverse_JBNCC, own_JBNCP.astype(v_JBNCP.dtype))
    old_JBNCH = _read(inverse_JBNCC, weighted(a_JBNCH, read_before(decay)))
    old_JBNCH = old_JBNCH.astype(a_JBNCH.dtype)
    rewrite_JBNCH = weighted(b_JBNCH, decay.write_CH)
    written_JBNHP = _written(weighted(k_JBNCH, decay.write_CH), v_JBNCP)

    def carry(s_BNHP, chunk):
        keep_BNH, own_BNCP, old_BNCH, rewrite_BNCH, written_BNHP = chunk
        before_BNHP = s_BNHP.astype(old_BNCH.dtype)
        u_BNCP = own_BNCP + dot("...ch,...hp->...cp", old_BNCH, before_BNHP)
        u_BNCP = u_BNCP.astype(old_BNCH.dtype)
        s_BNHP = keep_BNH[..., None] * s_BNHP + written_BNHP
        return s_BNHP + _written(rewrite_BNCH, u_BNCP), (before_BNHP, u_BNCP)

    chunks = (decay.keep_H, own_JBNCP, old_JBNCH, rewrite_JBNCH, written_JBNHP)
    s_BNHP, (before_JBNHP, u_JBNCP) = jax.lax.scan(carry, s_BNHP, chunks)
    read_JBNCH = weighted(r_JBNCH, decay.read_CH)
    out_JBNCP = dot("...ch,...hp->...cp", read_JBNCH, before_JBNHP)
    out_JBNCP += _read(products(decay, r_JBNCH, b_JBNCH), u_JBNCP)
    out_JBNCP += _read(products(decay, r_JBNCH, k_JBNCH), v_JBNCP)
    return s_BNHP, out_JBNCP.astype(r_JBNCH.dtype)


def _read(weights_CC, values_CP):
    """Returns what each token reads of the values of the tokens of its chunk."""
    return dot("...ts,...sp->...tp", weights_CC, values_CP)


def _written(keys_CH, values_CP):
    """Returns the sum over a chunk of what its tokens write."""
    return dot("...ch,...cp->...hp", keys_CH, values_CP)
