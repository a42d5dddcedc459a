"""The gated delta rule chunk by chunk, in plain JAX: O(T C), gradients by autodiff.

Written as S_t = exp(log_decay_t) S_{t-1} + k_t u_t^T, the memory is linear attention of
corrected values u_t = beta_t (v_t - exp(log_decay_t) S_{t-1}^T k_t). Those of a chunk
solve a unit lower triangular system: with b_t the sum of the decays since the chunk's
start, S_0 the memory before it, and L_ts = beta_t exp(b_t - b_s) k_t . k_s for s < t,

U = (I + L)^{-1} (beta V) - (I + L)^{-1} (beta exp(b) K) S_0

Source: Yang et al. 2025, section 3.3, arXiv:2412.06464, whose WY form this is.
"""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.chunks import chunk_by_chunk, sizes
from pallas_kernels.matrix_memory.gates import chunk_gates, padded, runs_of, within
from pallas_kernels.matrix_memory.memory import Writes
from pallas_kernels.unit_lower import unit_lower_inverse

CHUNK = 64  # tokens
GROUP = 8  # chunks


def gated_delta_rule_chunked(
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
    """Returns out_BTNP and the last memory, as reference.py defines them."""
    chunk, group = sizes(q_BTKH.shape[1], CHUNK, GROUP)
    # A token writes its corrected value whole: beta is no gate of the decays.
    writes = Writes(jnp.zeros_like(log_decay_BTN), log_decay_BTN, resets_BT)
    writes = padded(writes, chunk * group)
    log_write_BNT, log_decay_BNT = (x_BTN.swapaxes(1, 2) for x_BTN in writes[:2])
    runs = runs_of(writes.resets_BT, chunk)
    gates = chunk_gates(log_write_BNT, log_decay_BNT, None, None, runs, chunk=chunk)
    return chunk_by_chunk(
        partial(_group, scale=scale),
        s_BNHP,
        (q_BTKH, k_BTKH, v_BTNP, beta_BTN),
        (gates, runs),
        chunk=CHUNK,
        group=GROUP,
    )


def _group(s_BNHP, q_JBKCH, k_JBKCH, v_JBNCP, beta_JBNC, gates, runs_JB1C, *, scale):
    """Returns the memory after a group of chunks, and their out_JBNCP.

    The chunks share every matmul but the two that carry the memory from one to the
    next.
    """
    narrow = partial(jax.lax.convert_element_type, new_dtype=q_JBKCH.dtype)
    served = v_JBNCP.shape[-3] // q_JBKCH.shape[-3]
    per_head = partial(jnp.repeat, repeats=served, axis=-3)
    weights_JBNCC = jnp.exp(within(gates, runs_JB1C))
    wide_k_JBNCH = per_head(k_JBKCH).astype(beta_JBNC.dtype)

    beta_JBNC1 = beta_JBNC[..., None]
    k_JBKHC = k_JBKCH.swapaxes(-1, -2)
    strict_JBNCC = beta_JBNC1 * weights_JBNCC * per_head(_dot(k_JBKCH, k_JBKHC))
    inverse_JBNCC = narrow(unit_lower_inverse(strict_JBNCC))
    own_JBNCP = beta_JBNC1 * v_JBNCP.astype(beta_JBNC.dtype)
    own_JBNCP = _dot(inverse_JBNCC, narrow(own_JBNCP))
    old_JBNC1 = jnp.exp(gates.old)[..., None]
    old_JBNCH = _dot(inverse_JBNCC, narrow(beta_JBNC1 * old_JBNC1 * wide_k_JBNCH))
    write_JBNHC = (jnp.exp(gates.write)[..., None] * wide_k_JBNCH).swapaxes(-1, -2)

    def carry(s_BNHP, inputs):
        keep_BN, own_BNCP, old_BNCH, write_BNHC = inputs
        before_BNHP = narrow(s_BNHP)
        u_BNCP = narrow(own_BNCP - _dot(old_BNCH, before_BNHP))
        s_BNHP = keep_BN[..., None, None] * s_BNHP + _dot(write_BNHC, u_BNCP)
        return s_BNHP, (before_BNHP, u_BNCP)

    inputs = (jnp.exp(gates.keep), own_JBNCP, narrow(old_JBNCH), narrow(write_JBNHC))
    s_BNHP, (s_JBNHP, u_JBNCP) = jax.lax.scan(carry, s_BNHP, inputs)

    scores_JBNCC = scale * weights_JBNCC * per_head(_dot(q_JBKCH, k_JBKHC))
    q_JBNCH = scale * old_JBNC1 * per_head(q_JBKCH).astype(beta_JBNC.dtype)
    out_JBNCP = _dot(narrow(scores_JBNCC), u_JBNCP) + _dot(narrow(q_JBNCH), s_JBNHP)
    return s_BNHP, narrow(out_JBNCP)


def _dot(x, y):
    """Returns x @ y with sums in a wide dtype."""
    return jnp.matmul(
        x,
        y,
        preferred_element_type=accumulation_dtype(x.dtype),
        precision=None if x.dtype == jnp.bfloat16 else "highest",
    )
