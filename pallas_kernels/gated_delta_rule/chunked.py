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
from pallas_kernels.matrix_memory.gates import Gates, chunk_gates, runs_of
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
    T = q_BTKH.shape[1]
    chunk, group = _sizes(T)
    tokens = (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, resets_BT)
    groups = jax.tree.map(partial(_cut, length=chunk * group), tokens)

    def body(s_BNHP, tokens):
        return _group(s_BNHP, *tokens, scale=scale, chunk=chunk)

    if chunk * group < T:  # a single group is kept, not computed again
        body = jax.checkpoint(body, prevent_cse=False)
    s_BNHP, out_IBTNP = jax.lax.scan(body, s_BNHP, groups)
    out_BITNP = jnp.moveaxis(out_IBTNP, 0, 1)
    out_BTNP = out_BITNP.reshape(len(out_BITNP), -1, *out_BITNP.shape[3:])
    return out_BTNP[:, :T], s_BNHP


def _sizes(length):
    """Returns the tokens of a chunk and the chunks of a group, all groups alike."""
    chunk = min(CHUNK, length)
    chunks = -(-length // chunk)
    groups = -(-chunks // GROUP)
    return chunk, -(-chunks // groups)


def _cut(x_BTX, *, length):
    """Returns pieces of `length` tokens, the last ones zero, the pieces' axis first.

    A token of zeros changes nothing: it keeps the memory and writes zero times zero.
    """
    padding = [(0, 0)] * x_BTX.ndim
    padding[1] = (0, -x_BTX.shape[1] % length)
    x_BTX = jnp.pad(x_BTX, padding)
    x_BITX = x_BTX.reshape(len(x_BTX), -1, length, *x_BTX.shape[2:])
    return jnp.moveaxis(x_BITX, 1, 0)


def _group(
    s_BNHP, q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, resets_BT, *, scale, chunk
):
    """Returns the memory after a group of chunks, and their outputs out_BTNP.

    The chunks share every matmul but the two that carry the memory from one to the
    next.
    """
    heads_first = partial(_heads_first, chunk=chunk)
    q_JBKCH, k_JBKCH, v_JBNCP = map(heads_first, (q_BTKH, k_BTKH, v_BTNP))
    narrow = partial(jax.lax.convert_element_type, new_dtype=q_BTKH.dtype)
    gates, weights_JBNCC = _gates(log_decay_BTN, resets_BT, chunk)
    per_head = partial(jnp.repeat, repeats=v_BTNP.shape[2] // q_BTKH.shape[2], axis=2)
    wide_k_JBNCH = per_head(k_JBKCH).astype(beta_BTN.dtype)

    beta_JBNC1 = heads_first(beta_BTN)[..., None]
    k_JBKHC = k_JBKCH.swapaxes(-1, -2)
    strict_JBNCC = beta_JBNC1 * weights_JBNCC * per_head(_dot(k_JBKCH, k_JBKHC))
    inverse_JBNCC = narrow(unit_lower_inverse(strict_JBNCC))
    own_JBNCP = beta_JBNC1 * v_JBNCP.astype(beta_BTN.dtype)
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
    q_JBNCH = scale * old_JBNC1 * per_head(q_JBKCH).astype(beta_BTN.dtype)
    out_JBNCP = _dot(narrow(scores_JBNCC), u_JBNCP) + _dot(narrow(q_JBNCH), s_JBNHP)
    out_BJCNP = narrow(out_JBNCP).transpose(1, 0, 3, 2, 4)
    return s_BNHP, out_BJCNP.reshape(len(out_BJCNP), -1, *out_BJCNP.shape[3:])


def _heads_first(x_BTNX, *, chunk):
    """Returns the chunks of an array, JBNCX."""
    return jnp.moveaxis(_cut(x_BTNX, length=chunk), 3, 2)


def _gates(log_decay_BTN, resets_BT, chunk):
    """Returns the Gates of the chunks, J first of their axes, and exp(b_t - b_s) for
    s <= t of one run, else 0."""
    log_decay_BNT = log_decay_BTN.swapaxes(1, 2)
    runs_B1JC = runs_of(resets_BT, chunk)
    write_BNT = jnp.zeros_like(log_decay_BNT)  # logarithms: beta is no gate of these
    gates = chunk_gates(write_BNT, log_decay_BNT, None, None, runs_B1JC, chunk=chunk)
    gates: Gates = jax.tree.map(lambda x_BNJX: jnp.moveaxis(x_BNJX, 2, 0), gates)
    logs_JBNCC = gates.row[..., :, None] + gates.column[..., None, :]
    logs_JBNCC += gates.coarse[..., :, None] - gates.coarse[..., None, :]
    seen_JBNCC = jnp.tril(jnp.ones((chunk, chunk), bool), -1)[None, None, None]
    if runs_B1JC is not None:
        runs_JB1C = jnp.moveaxis(runs_B1JC, 2, 0)
        same_JBNCC = runs_JB1C[..., :, None] == runs_JB1C[..., None, :]
        seen_JBNCC = seen_JBNCC & same_JBNCC
    own_JBNCC = jnp.eye(chunk, dtype=logs_JBNCC.dtype)[None, None, None]
    weights_JBNCC = jnp.exp(jnp.where(seen_JBNCC, logs_JBNCC, 0.0))
    return gates, jnp.where(seen_JBNCC, weights_JBNCC, own_JBNCC)


def _dot(x, y):
    """Returns x @ y with sums in a wide dtype."""
    return jnp.matmul(
        x,
        y,
        preferred_element_type=accumulation_dtype(x.dtype),
        precision=None if x.dtype == jnp.bfloat16 else "highest",
    )
