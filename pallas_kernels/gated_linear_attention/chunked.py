"""Gated linear attention chunk by chunk, in plain JAX: O(T C), gradients by autodiff.

Chunks go in groups: those of a group share every matmul, and only the decay of the
memory from chunk to chunk is sequential. The backward pass computes each group again,
so that its memory does not grow with the sequence but for one memory per group.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.channel_decay import (
    EMPTIED,
    channel_decay,
    dot,
    products,
    weighted,
)
from pallas_kernels.chunks import chunk_by_chunk

CHUNK = 64  # tokens
GROUP = 4  # chunks


def gated_linear_attention_chunked(
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
    """Returns out_BTNP and the memory after the last token; reference.py defines both.

    `log_decay_BTNH` is in the dtype of accumulation, and so is the memory. Source: Yang
    et al. 2024, arXiv:2312.06635, section 4.
    """
    if resets_BT is not None:
        log_decay_BTNH = jnp.where(resets_BT[..., None, None], EMPTIED, log_decay_BTNH)
    tokens = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH)
    group = partial(_group, scale=scale)
    return chunk_by_chunk(group, s_BNHP, tokens, chunk=CHUNK, group=GROUP)


def _group(s_BNHP, q_JBNCH, k_JBNCH, v_JBNCP, log_decay_JBNCH, *, scale):
    """Returns the memory after a group of chunks, and their outputs out_JBNCP."""
    decay = channel_decay(log_decay_JBNCH)
    write_JBNCH = weighted(k_JBNCH, decay.write_CH)
    written_JBNHP = dot("...ch,...cp->...hp", write_JBNCH, v_JBNCP)

    def keep(s_BNHP, chunk):
        keep_BNH, written_BNHP = chunk
        return keep_BNH[..., None] * s_BNHP + written_BNHP, s_BNHP

    s_BNHP, before_JBNHP = jax.lax.scan(keep, s_BNHP, (decay.keep_H, written_JBNHP))
    read_JBNCH = weighted(q_JBNCH, scale * decay.read_CH)
    out_JBNCP = dot("...ch,...hp->...cp", read_JBNCH, before_JBNHP)
    scores_JBNCC = scale * products(decay, q_JBNCH, k_JBNCH)
    out_JBNCP += dot("...ts,...sp->...tp", scores_JBNCC, v_JBNCP)
    return s_BNHP, out_JBNCP.astype(q_JBNCH.dtype)
