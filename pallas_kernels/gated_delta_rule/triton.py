"""The gated delta rule as Pallas kernels for GPUs: the call, and both passes.

Of the corrected values (see chunked.py) the memory is linear attention, whose kernels
read it and have its gradients: those of the matrix memory. What is left are the
corrections: the inverse of every chunk and its products (triton_chunk.py), the walk
through the chunks (triton_walk.py), and their gradients (triton_backward.py). The
backward pass computes everything again but the inputs.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule.tiles import Tiles, tiles_for
from pallas_kernels.gated_delta_rule.triton_backward import correction_gradients
from pallas_kernels.gated_delta_rule.triton_chunk import (
    inverses,
    times_inverse,
    times_scores,
)
from pallas_kernels.gated_delta_rule.triton_walk import Walk, Walked, walked
from pallas_kernels.mapped import mapped_alike
from pallas_kernels.matrix_memory.blocks import Sizes, Tokens, Weights, refuse
from pallas_kernels.matrix_memory.gates import Gates, chunk_gates, cut, runs_of
from pallas_kernels.matrix_memory.memory import EMPTY, Rules
from pallas_kernels.matrix_memory.triton_backward import (
    Tangents,
    key_gradients,
    query_gradient,
)
from pallas_kernels.matrix_memory.triton_read import read
from pallas_kernels.matrix_memory.triton_states import States


class Inputs(NamedTuple):
    """The arrays of a call; T' tokens are whole chunks. `s_BNHP` None is empty."""

    tokens: Tokens
    log_decay_BNT: Any
    beta_BNT: Any
    resets_BT: Any
    s_BNHP: Any


class Corrected(NamedTuple):
    """What the forward pass finds: the inverses A, A (beta exp(b) K), and the walk."""

    inverse_BNTC: Any
    old_BTNH: Any
    walk: Walked


def gated_delta_rule_triton(
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
    precise: bool,
    empty: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNP and the last memory, as reference.py defines them.

    `precise` multiplies float32 in full. `empty` says that `s_BNHP` is known to be, and
    need not be read.

    Raises:
      NotImplementedError: the target is no GPU, or a dtype, width, number of heads or
        batch that the kernels do not serve.
    """
    tokens, dtype = Tokens(q_BTKH, k_BTKH, v_BTNP), q_BTKH.dtype
    if dtype == jnp.float16:  # whose range is too small for memories
        tokens = Tokens(*(x.astype(jnp.float32) for x in tokens))
    rules = Rules(scale, False, False, precise=precise and dtype == jnp.float32)
    (B, T, K, H), (N, P) = q_BTKH.shape, v_BTNP.shape[2:]
    sizes = Sizes(B, T, K, N, H, P, rules, backend.is_interpreting())
    refuse(sizes, dtype, products=True)
    tiles = tiles_for(
        width=sizes.key_width, dtype=tokens.q_BTKH.dtype, precise=rules.precise
    )
    gates = _whole_chunks(log_decay_BTN, beta_BTN, resets_BT, tiles.chunk)
    log_decay_BNT, beta_BNT, resets_BT = gates
    start_BNHP = None if empty else s_BNHP
    inputs = Inputs(tokens, log_decay_BNT, beta_BNT, resets_BT, start_BNHP)
    found: Any = _rule(backend.alike(inputs), sizes, tiles)
    out_BTNP, s_BNHP = found
    return out_BTNP.astype(dtype), s_BNHP


def _whole_chunks(log_decay_BTN, beta_BTN, resets_BT, chunk):
    """Returns log_decay_BNT, beta_BNT and resets_BT of whole chunks: where there is no
    token, all is kept and nothing written."""

    def longer(x_BTX):
        padding = [(0, 0)] * x_BTX.ndim
        padding[1] = (0, -x_BTX.shape[1] % chunk)
        return jnp.pad(x_BTX, padding)

    gates = (longer(x_BTN).swapaxes(1, 2) for x_BTN in (log_decay_BTN, beta_BTN))
    return *gates, None if resets_BT is None else longer(resets_BT)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _rule(inputs: Inputs, sizes: Sizes, tiles: Tiles):
    """Returns out_BTNP and the last memory."""
    weights, _ = _weights(inputs, sizes, tiles.chunk)
    corrected = _corrected(inputs, weights, sizes, tiles)
    out_BTNP, _ = read(
        inputs.tokens._replace(v_BTNP=corrected.walk.x_BTNP),
        weights,
        None,
        States(corrected.walk.s_BNJHP),
        sizes,
        tiles.shared.read,
        chunk=tiles.chunk,
        span=1,
    )
    return out_BTNP, corrected.walk.last_BNHP


def _rule_forward(inputs, sizes, tiles):
    inputs = jax.tree.map(lambda primal: primal.value, inputs)
    found: Any = _rule(inputs, sizes, tiles)
    return mapped_alike(found, found[0]), inputs


def _weights(inputs, sizes, chunk):
    """Returns the Weights of all chunks, and the pullback of the gates' cotangents to
    log_decay_BNT. Tokens that do not exist read and write nothing."""
    runs_B1JC = runs_of(inputs.resets_BT, chunk)
    exists_T = jnp.arange(inputs.beta_BNT.shape[2]) < sizes.T
    log_write_BNT = jnp.where(
        exists_T[None, None], jnp.zeros_like(inputs.beta_BNT), EMPTY
    )

    def gates_of(log_decay_BNT):
        gates = (log_write_BNT, log_decay_BNT, None, None, runs_B1JC)
        return chunk_gates(*gates, chunk=chunk)

    gates, pull = jax.vjp(gates_of, inputs.log_decay_BNT)
    flat = (x_BNJC.reshape(*x_BNJC.shape[:2], -1) for x_BNJC in gates[:5])
    row_BNT, column_BNT, coarse_BNT, old_BNT, write_BNT = flat
    row_BNT, old_BNT = (
        jnp.where(exists_T[None, None], x, EMPTY) for x in (row_BNT, old_BNT)
    )
    runs_BT = None if runs_B1JC is None else runs_B1JC.reshape(len(runs_B1JC), -1)
    linear = (jnp.exp(x) for x in (old_BNT, write_BNT, gates.keep))
    return Weights(row_BNT, column_BNT, coarse_BNT, *linear, runs_BT=runs_BT), pull


def _corrected(inputs, weights, sizes, tiles):
    """Returns the corrected values, and what they are made of."""
    k_BTKH, v_BTNP = inputs.tokens.k_BTKH, inputs.tokens.v_BTNP
    inverse_BNTC = inverses(
        k_BTKH, weights, inputs.beta_BNT, sizes, tiles.inverse, tiles.chunk
    )
    times = partial(times_inverse, inverse_BNTC, sizes=sizes, tile=tiles.product)
    own_BTNP = times(v_BTNP, inputs.beta_BNT)
    old_BTNH = times(k_BTKH, inputs.beta_BNT * weights.old_BNT)
    walk = Walk(
        own_BTNP,
        old_BTNH,
        None,
        k_BTKH,
        weights.write_BNT,
        weights.keep_BNJ,
        inputs.s_BNHP,
    )
    walk = walked(walk, sizes, tiles.walk, tiles.chunk)
    return Corrected(inverse_BNTC, old_BTNH, walk)


def _rule_backward(sizes, tiles, inputs, cotangents):
    """Returns the cotangents of the inputs, None for constants."""
    dout_BTNP, ds_BNHP = (
        None if isinstance(x, SymbolicZero) else x for x in cotangents
    )
    if dout_BTNP is None:
        dout_BTNP = jnp.zeros_like(inputs.tokens.v_BTNP)
    weights, pull_gates = _weights(inputs, sizes, tiles.chunk)
    corrected = _corrected(inputs, weights, sizes, tiles)
    tokens = inputs.tokens._replace(v_BTNP=corrected.walk.x_BTNP)
    befores = corrected.walk.s_BNJHP
    afters = _reverse_walk(tokens, weights, corrected, dout_BTNP, ds_BNHP, sizes, tiles)

    shared = (tokens, weights, Tangents(dout_BTNP, None, None))
    dq_BTNH, dold_BNT = query_gradient(
        *shared, States(befores), sizes, tiles.shared.dq, tiles.chunk
    )
    dk_BTNH, du_BTNP, drow_BNT, dcolumn_BNT, _, dwrite_BNT = key_gradients(
        *shared, States(afters.s_BNJHP), sizes, tiles.shared.dkv, tiles.chunk
    )
    dr_BTNP = times_inverse(
        corrected.inverse_BNTC, du_BTNP, None, sizes, tiles.product, transposed=True
    )
    arrays = (weights, inputs.beta_BNT, dr_BTNP, befores)
    shares = correction_gradients(tokens, *arrays, sizes, tiles.keys, tiles.chunk)

    dkeep_BNJ = jnp.sum(afters.products_BNJX, axis=-1) * weights.keep_BNJ
    dlogs = (drow_BNT, dcolumn_BNT, dold_BNT, dwrite_BNT, dkeep_BNJ)
    (dlog_decay_BNT,) = pull_gates(_gate_gradients(dlogs, shares, tiles.chunk))
    dv_BTNP, dbeta_BNT = _value_gradients(inputs, dr_BTNP, shares.beta_BNT)
    dk_BTNH = dk_BTNH.astype(jnp.float32) + shares.k_BTNH.astype(jnp.float32)
    dq_BTKH, dk_BTKH = (_per_key_head(x, tokens.k_BTKH) for x in (dq_BTNH, dk_BTNH))
    dtokens = Tokens(dq_BTKH, dk_BTKH, dv_BTNP)
    ds_BNHP = None if inputs.s_BNHP is None else afters.last_BNHP
    return (Inputs(dtokens, dlog_decay_BNT, dbeta_BNT, None, ds_BNHP),)


def _reverse_walk(tokens, weights, corrected, dout_BTNP, ds_BNHP, sizes, tiles):
    """Returns the cotangents of the memories after each chunk, and before the first."""
    local_BTNP = times_scores(
        tokens, weights, dout_BTNP, sizes, tiles.product, tiles.chunk
    )
    walk = Walk(
        local_BTNP,
        tokens.k_BTKH,
        weights.write_BNT,
        corrected.old_BTNH,
        None,
        weights.keep_BNJ,
        ds_BNHP,
        q_BTKH=tokens.q_BTKH,
        old_BNT=sizes.rules.scale * weights.old_BNT,
        dout_BTNP=dout_BTNP,
        others_BNJHP=corrected.walk.s_BNJHP,
    )
    return walked(walk, sizes, tiles.walk, tiles.chunk, reverse=True)


def _gate_gradients(dlogs, shares, chunk) -> Gates:
    """Returns the cotangents of the gates' logarithms, in chunks."""
    drow_BNT, dcolumn_BNT, dold_BNT, dwrite_BNT, dkeep_BNJ = dlogs
    zeros = cut(jnp.zeros_like(drow_BNT), chunk)  # of constants
    return Gates(
        row=cut(drow_BNT + shares.row_BNT, chunk),
        column=cut(dcolumn_BNT + shares.column_BNT, chunk),
        coarse=zeros,
        old=cut(dold_BNT + shares.old_BNT, chunk),
        write=cut(dwrite_BNT, chunk),
        keep=dkeep_BNJ,
        own=zeros,
    )


def _value_gradients(inputs, dr_BTNP, dbeta_BNT):
    """Returns dv_BTNP, and the cotangent of beta with what comes by the values."""
    T = dr_BTNP.shape[1]
    wide_BTNP = dr_BTNP.astype(jnp.float32)
    beta_BTN = inputs.beta_BNT[..., :T].swapaxes(1, 2)
    dv_BTNP = (beta_BTN[..., None] * wide_BTNP).astype(dr_BTNP.dtype)
    along_BTN = jnp.sum(wide_BTNP * inputs.tokens.v_BTNP.astype(jnp.float32), axis=-1)
    padding = ((0, 0), (0, 0), (0, inputs.beta_BNT.shape[2] - T))
    return dv_BTNP, dbeta_BNT + jnp.pad(along_BTN.swapaxes(1, 2), padding)


def _per_key_head(x_BTNH, like_BTKH):
    """Returns the sum over the heads of values that share a head of keys."""
    K, H = like_BTKH.shape[2:]
    x_BTKGH = x_BTNH.reshape(*x_BTNH.shape[:2], K, -1, H)
    return jnp.sum(x_BTKGH.astype(jnp.float32), axis=3).astype(like_BTKH.dtype)


_rule.defvjp(_rule_forward, _rule_backward, symbolic_zeros=True)
