"""Gated linear attention as Pallas kernels for GPUs: the call, and both passes.

The sums of the decays are made in plain JAX (see decays.py). Forward, a kernel finds
what the tokens of each chunk read of each other and how they meet the memory, one walks
the memory from chunk to chunk, and one reads it. The backward pass computes all of that
again but the output, walks the cotangent of the memory in reverse, and has the
gradients of all chunks at once.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from pallas_kernels import backend
from pallas_kernels.gated_linear_attention.decays import (
    decay_gradient,
    decays_of,
    limited,
)
from pallas_kernels.gated_linear_attention.tiles import Tiles, tiles_for
from pallas_kernels.gated_linear_attention.triton_backward import Tangents, gradients
from pallas_kernels.gated_linear_attention.triton_read import (
    Local,
    read,
    read_transposed,
    score_gradients,
)
from pallas_kernels.gated_linear_attention.triton_scores import scores
from pallas_kernels.gated_linear_attention.triton_states import Walk, states
from pallas_kernels.mapped import mapped_alike
from pallas_kernels.matrix_memory.blocks import Sizes, refuse
from pallas_kernels.matrix_memory.memory import Rules


class Inputs(NamedTuple):
    """The arrays of a call, forward and backward; `log_decay_BTNH` is limited, and
    `s_BNHP` None where the memory before the first token is empty."""

    q_BTNH: Any
    k_BTNH: Any
    v_BTNP: Any
    log_decay_BTNH: Any
    s_BNHP: Any
    resets_BT: Any


def gated_linear_attention_triton(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTNH: jax.Array,
    resets_BT: Any,
    s_BNHP: jax.Array,
    /,
    *,
    scale: float,
    empty: bool = False,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNP and the memory after the last token; reference.py defines both.

    `empty` says that `s_BNHP` is known to be, and need not be read. `tiles` None are
    those of tiles.py. float32 is multiplied in full.

    Raises:
      NotImplementedError: the target is no GPU, or a dtype, width, number of heads or
        batch that the kernels do not serve.
    """
    dtype, tokens = q_BTNH.dtype, (q_BTNH, k_BTNH, v_BTNP)
    (B, T, N, H), P = q_BTNH.shape, v_BTNP.shape[3]
    rules = Rules(scale, stabilise=False, normalize=False)
    sizes = Sizes(B, T, N, N, H, P, rules, backend.is_interpreting())
    refuse(sizes, dtype, products=True)
    if dtype == jnp.float16:  # whose range is too small for states
        q_BTNH, k_BTNH, v_BTNP = (x.astype(jnp.float32) for x in tokens)
    log_decay_BTNH = limited(log_decay_BTNH, resets_BT)
    start_BNHP = None if empty else s_BNHP
    inputs = Inputs(q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, start_BNHP, resets_BT)
    tiles = tiles or tiles_for(sizes, inputs.q_BTNH.dtype)
    found: Any = _read(inputs, sizes, tiles)
    out_BTNP, last_BNHP = found
    return out_BTNP.astype(dtype), last_BNHP


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _read(inputs, sizes, tiles):
    """Returns out_BTNP and the memory after the last token."""
    decays, scored = _scored(inputs, sizes, tiles)
    walk = Walk(scored.writes_BTNH, inputs.v_BTNP, decays.keep_BNJH, inputs.s_BNHP)
    walked = states(walk, sizes, tiles.states, tiles.chunk, last=True)
    local = Local(scored.scores_BNTC, inputs.v_BTNP)
    arrays = (scored.reads_BTNH, walked.s_BNJHP, local)
    return read(*arrays, sizes, tiles.read, tiles.chunk), walked.last_BNHP


def _scored(inputs, sizes, tiles):
    """Returns the decays and the Scores of all chunks."""
    decays = decays_of(inputs.log_decay_BTNH, chunk=tiles.chunk)
    arrays = (inputs.q_BTNH, inputs.k_BTNH, decays)
    return decays, scores(*arrays, sizes, tiles.scores, tiles.chunk)


def _read_forward(inputs, sizes, tiles):
    inputs = jax.tree.map(lambda primal: primal.value, inputs)
    found: Any = _read(inputs, sizes, tiles)
    return mapped_alike(found, found[0]), inputs


def _read_backward(sizes, tiles, inputs: Inputs, cotangents):
    """Returns the cotangents of the inputs, None for the resets."""
    dout_BTNP, dlast_BNHP = (
        None if isinstance(x, SymbolicZero) else x for x in cotangents
    )
    if dout_BTNP is None:
        dout_BTNP = jnp.zeros_like(inputs.v_BTNP)
    chunk, v_BTNP = tiles.chunk, inputs.v_BTNP
    decays, scored = _scored(inputs, sizes, tiles)
    walks = partial(states, sizes=sizes, tile=tiles.states, chunk=chunk)
    walk = Walk(scored.writes_BTNH, v_BTNP, decays.keep_BNJH, inputs.s_BNHP)
    befores = walks(walk, last=False)
    walk = Walk(scored.reads_BTNH, dout_BTNP, decays.keep_BNJH, dlast_BNHP)
    walk = walk._replace(others_BNJHP=befores.s_BNJHP)
    afters = walks(walk, last=inputs.s_BNHP is not None, reverse=True)

    reads = (sizes, tiles.read, chunk)
    local = Local(scored.scores_BNTC, dout_BTNP)
    dv_BTNP = read(scored.writes_BTNH, afters.s_BNJHP, local, *reads, transposed=True)
    tangents = Tangents(
        score_gradients(dout_BTNP, v_BTNP, sizes, tiles.dscores, chunk),
        read_transposed(dout_BTNP, befores.s_BNJHP, *reads),
        read_transposed(v_BTNP, afters.s_BNJHP, *reads),
    )
    arrays = (inputs.q_BTNH, inputs.k_BTNH, decays, tangents)
    found = gradients(*arrays, sizes, tiles.gradients, chunk)
    dkeep_BNJH = jnp.sum(afters.products_BNJXH, axis=3) * decays.keep_BNJH
    dlog_decay_BTNH = decay_gradient(
        found.later_BTNH,
        found.earlier_BTNH,
        dkeep_BNJH,
        inputs.resets_BT,
        chunk=chunk,
    )
    gradient = (found.dq_BTNH, found.dk_BTNH, dv_BTNP, dlog_decay_BTNH)
    return (Inputs(*gradient, afters.last_BNHP, resets_BT=None),)


_read.defvjp(_read_forward, _read_backward, symbolic_zeros=True)
