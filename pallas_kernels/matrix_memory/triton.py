"""The matrix memory as Pallas kernels for GPUs: the call, and both passes.

Gates, the running scale and whatever else is a scalar per token stay in plain JAX (see
gates.py and scale.py). The forward pass is one kernel where heads and rows fill the
GPU: the state stays on chip. Else the row is split, and a kernel that does nothing else
writes the states at the splits. The backward pass computes the states before every
chunk again, then their cotangents in reverse, then the gradients of all chunks at once.
It needs no output: kept for it are the inputs, and a number per token and head.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.mapped import mapped_alike
from pallas_kernels.matrix_memory.blocks import Sizes, Tokens, Weights, refuse
from pallas_kernels.matrix_memory.chunked import matrix_memory_chunked
from pallas_kernels.matrix_memory.division import Read
from pallas_kernels.matrix_memory.gates import (
    Gates,
    chunk_gates,
    cut,
    padded,
    runs_of,
)
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Rules, Writes
from pallas_kernels.matrix_memory.scale import finished, scaled
from pallas_kernels.matrix_memory.tiles import Tiles, tiles_for
from pallas_kernels.matrix_memory.triton_backward import (
    Tangents,
    key_gradients,
    query_gradient,
)
from pallas_kernels.matrix_memory.triton_read import read
from pallas_kernels.matrix_memory.triton_states import States, Walk, states
from pallas_kernels.matrix_memory.triton_step import MOST_TOKENS, matrix_memory_step


class Inputs(NamedTuple):
    """The arrays of a call; T' tokens are whole chunks, forward and backward.

    `start` is the memory before the first token, arrays that are None where it is
    empty; its scale, `m_BNT` and `floor_BNT` are constants.
    """

    tokens: Tokens
    log_i_BNT: Any
    log_f_BNT: Any
    eps_BNT: Any
    start: Memory
    m_BNT: Any
    floor_BNT: Any
    resets_BT: Any


def matrix_memory_triton(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    writes: Writes,
    memory: Memory,
    /,
    *,
    rules: Rules,
    empty: bool = False,
    tiles: Tiles | None = None,
) -> tuple[Read, Memory]:
    """Returns h and the memory after the last token; reference.py defines both.

    `empty` says that `memory` is known to be, and need not be read. `tiles` None reads
    them from the table of tiles.py. Up to 16 tokens without gradients are a step of
    decoding, which updates the memory in place.

    Raises:
      NotImplementedError: the target is no GPU, or a dtype, width, number of heads or
        batch that the kernels do not serve.
    """
    tokens = Tokens(q_BTKH, k_BTKH, v_BTNP)
    if q_BTKH.shape[1] > MOST_TOKENS or tiles is not None:
        return _chunks(tokens, writes, memory, rules=rules, empty=empty, tiles=tiles)
    return _few(tokens, writes, memory, rules)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _few(tokens: Tokens, writes, memory, rules):
    """Returns h and the memory after a few tokens, by the kernel of a step."""
    return matrix_memory_step(*tokens, writes, memory, rules=rules)


def _few_forward(tokens, writes, memory, rules):
    """Returns the same by the plain form, which has gradients and serves whatever the
    step does; a few tokens are a single chunk."""

    def found(tokens: Tokens, gates, memory):
        writes_ = Writes(gates[0], gates[1], writes.resets_BT)
        found = matrix_memory_chunked(*tokens, writes_, memory, rules=rules)
        return mapped_alike(found, found[0].h_BTNP)

    return jax.vjp(found, tokens, writes[:2], memory)


def _few_backward(rules, pullback, cotangents):
    del rules
    tokens, gates, memory = pullback(cotangents)
    return tokens, Writes(gates[0], gates[1], None), memory


_few.defvjp(_few_forward, _few_backward)


def _chunks(tokens: Tokens, writes, memory, /, *, rules, empty, tiles):
    """Returns h and the memory after the last token, by the kernels of chunks."""
    dtype = tokens.q_BTKH.dtype
    if dtype == jnp.float16:  # whose range is too small for states
        tokens = Tokens(*(x.astype(jnp.float32) for x in tokens))
    rules = rules._replace(precise=rules.precise and dtype == jnp.float32)
    (B, T, K, H), (N, P) = tokens.q_BTKH.shape, tokens.v_BTNP.shape[2:]
    sizes = Sizes(B, T, K, N, H, P, rules, backend.is_interpreting())
    refuse(sizes, dtype, products=True)
    if tiles is None:
        tiles = tiles_for(
            width=sizes.key_width,
            dtype=tokens.q_BTKH.dtype,
            precise=rules.precise,
            device_kind=backend.device_kind(),
        )
    writes = padded(writes, max(tiles.chunk, tiles.gradient_chunk))
    log_i_BNT, log_f_BNT, m_BNT, start, floor_BNT, eps_BNT = scaled(
        writes, memory, rules
    )
    keeps_sums = start.n_BNH is not None
    if empty:
        start = start._replace(c_BNHP=None, n_BNH=None)
    inputs = Inputs(
        tokens,
        log_i_BNT,
        log_f_BNT,
        eps_BNT,
        start,
        m_BNT=jax.lax.stop_gradient(m_BNT),
        floor_BNT=floor_BNT,
        resets_BT=writes.resets_BT,
    )
    found: Any = _read(backend.alike(inputs), sizes, tiles, keeps_sums)
    (h_BTNP, one_BTN), c_BNHP, n_BNH = found
    h = Read(h_BTNP.astype(dtype), one_BTN)
    return h, finished(Memory(c_BNHP, n_BNH, None), m_BNT)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _read(inputs, sizes, tiles, keeps_sums):
    """Returns h, and C and n after the last token."""
    return _forward(inputs, sizes, tiles, keeps_sums)[0]


def _forward(inputs, sizes, tiles, keeps_sums):
    """Returns (h, C, n) and scale n_t . q_t of each token.

    Where the state stays on chip, the last one is a call of its own, which the compiler
    drops where nobody asks for it.
    """
    weights, _ = _weights(inputs, tiles.chunk)
    J = weights.keep_BNJ.shape[2]
    programs = sizes.B * sizes.N * pl.cdiv(sizes.P, tiles.read.values)
    spans = min(J, pl.cdiv(tiles.programs, programs))
    span = pl.cdiv(J, spans)
    walk = _memory_walk(inputs, weights, keeps_sums)
    walked = states(
        walk,
        sizes,
        tiles.states,
        chunk=tiles.chunk,
        span=span if spans > 1 else None,
        last=True,
    )
    starts = walked
    if spans == 1:
        c_BNHP, n_BNH, _ = inputs.start
        one = lambda x: None if x is None else x[:, :, None]  # noqa: E731
        starts = States(one(c_BNHP), one(n_BNH))
    starts = starts._replace(last_c_BNHP=None, last_n_BNH=None)
    h_BTNP, product_BNT = read(
        inputs.tokens,
        weights,
        inputs.floor_BNT,
        starts,
        sizes,
        tiles.read,
        chunk=tiles.chunk,
        span=span,
    )
    one_BTN = None
    if sizes.rules.normalize:
        one_BTN = jnp.ones((sizes.B, sizes.T, sizes.N), jnp.float32)
    found = Read(h_BTNP, one_BTN), walked.last_c_BNHP, walked.last_n_BNH
    return mapped_alike(found, h_BTNP), product_BNT


def _read_forward(inputs, sizes, tiles, keeps_sums):
    inputs = jax.tree.map(lambda primal: primal.value, inputs)
    found, product_BNT = _forward(inputs, sizes, tiles, keeps_sums)
    return found, (inputs, product_BNT)


def _read_backward(sizes, tiles, keeps_sums, residuals, cotangents):
    """Returns the cotangents of the inputs, None for constants."""
    inputs, product_BNT = residuals
    (dh_BTNP, done_BTN), dc_BNHP, dn_BNH = jax.tree.map(
        lambda x: None if isinstance(x, SymbolicZero) else x, cotangents
    )
    if dh_BTNP is None:
        dh_BTNP = jnp.zeros_like(inputs.tokens.v_BTNP)
    chunk = tiles.gradient_chunk
    weights, pull_gates = _weights(inputs, chunk)
    tangents, deps_BNT = _tangents(inputs, product_BNT, dh_BTNP, done_BTN)
    sums = sizes.rules.normalize or dn_BNH is not None
    walk = _memory_walk(inputs, weights, sums)
    walks = partial(states, chunk=chunk, span=1)
    befores = walks(walk, sizes, tiles.states, last=False)
    walk = _cotangent_walk(inputs, weights, tangents, sizes.rules, sums)
    walk = walk._replace(c_BNHP=dc_BNHP, n_BNH=dn_BNH, others_BNJHP=befores.c_BNIHP)
    wanted = inputs.start.c_BNHP is not None
    afters = walks(walk, sizes, tiles.states, last=wanted, reverse=True)
    shared = (inputs.tokens, weights, tangents)
    dq_BTNH, dold_BNT = query_gradient(*shared, befores, sizes, tiles.dq, chunk)
    dk_BTNH, dv_BTNP, *dscalars = key_gradients(
        *shared, afters, sizes, tiles.dkv, chunk
    )
    dkeep_BNJ = _keep_gradient(befores, afters) * weights.keep_BNJ
    dgates = _gate_gradients(dold_BNT, dscalars, dkeep_BNJ, chunk)
    dlog_i_BNT, dlog_f_BNT = pull_gates(dgates)
    dq_BTKH, dk_BTKH = (_per_key_head(x, sizes) for x in (dq_BTNH, dk_BTNH))
    dstart = Memory(afters.last_c_BNHP, afters.last_n_BNH, None)
    dtokens = Tokens(dq_BTKH, dk_BTKH, dv_BTNP)
    gradients = (dtokens, dlog_i_BNT, dlog_f_BNT, deps_BNT, dstart)
    return (Inputs(*gradients, m_BNT=None, floor_BNT=None, resets_BT=None),)


def _keep_gradient(befores: States, afters: States):
    """Returns the sums over the states before each chunk times the cotangents of those
    after it."""
    dkeep_BNJ = jnp.sum(afters.products_BNJX, axis=-1)
    if befores.n_BNIH is None or afters.n_BNIH is None:
        return dkeep_BNJ
    return dkeep_BNJ + jnp.sum(befores.n_BNIH * afters.n_BNIH, axis=-1)


def _gate_gradients(dold_BNT, dscalars, dkeep_BNJ, chunk) -> Gates:
    """Returns the cotangents of the gates' logarithms, in chunks."""
    drow, dcolumn, down, dwrite = (cut(x_BNT, chunk) for x_BNT in dscalars)
    return Gates(
        row=drow,
        column=dcolumn,
        coarse=jnp.zeros_like(drow),  # a constant
        old=cut(dold_BNT, chunk),
        write=dwrite,
        keep=dkeep_BNJ,
        own=down,
    )


_read.defvjp(_read_forward, _read_backward, symbolic_zeros=True)


def _weights(inputs, chunk):
    """Returns the Weights of all chunks, and the pullback of the gates' cotangents to
    log_i_BNT and log_f_BNT. Tokens that do not exist read and write nothing."""
    runs_B1JC = runs_of(inputs.resets_BT, chunk)

    def gates_of(log_i_BNT, log_f_BNT):
        m_BN = inputs.start.m_BN
        gates = (log_i_BNT, log_f_BNT, inputs.m_BNT, m_BN, runs_B1JC)
        return chunk_gates(*gates, chunk=chunk)

    gates, pull = jax.vjp(gates_of, inputs.log_i_BNT, inputs.log_f_BNT)
    flat = (x_BNJC.reshape(*x_BNJC.shape[:2], -1) for x_BNJC in gates[:5])
    row_BNT, column_BNT, coarse_BNT, old_BNT, write_BNT = flat
    exists_T = jnp.arange(row_BNT.shape[2]) < inputs.tokens.q_BTKH.shape[1]
    row_BNT, old_BNT = (
        jnp.where(exists_T[None, None], x, EMPTY) for x in (row_BNT, old_BNT)
    )
    runs_BT = None if runs_B1JC is None else runs_B1JC.reshape(len(runs_B1JC), -1)
    linear = (jnp.exp(x) for x in (old_BNT, write_BNT, gates.keep))
    weights = (row_BNT, column_BNT, coarse_BNT, *linear)
    return Weights(*weights, runs_BT=runs_BT), pull


def _memory_walk(inputs, weights, keeps_sums):
    """Returns how the keys and values are written into the memory."""
    sums_BNT = weights.write_BNT if keeps_sums else None
    n_BNH = inputs.start.n_BNH if keeps_sums else None
    return Walk(
        inputs.tokens.k_BTKH,
        inputs.tokens.v_BTNP,
        weights.write_BNT,
        sums_BNT,
        weights.keep_BNJ,
        inputs.start.c_BNHP,
        n_BNH,
    )


def _cotangent_walk(inputs, weights, tangents, rules, sums):
    """Returns how the queries and dh are written into the memory's cotangent."""
    read_BNT = rules.scale * weights.old_BNT
    weights_BNT, sums_BNT = read_BNT, jnp.zeros_like(read_BNT) if sums else None
    if rules.normalize:
        weights_BNT = read_BNT * tangents.inverse_BNT
        sums_BNT = read_BNT * tangents.dproduct_BNT
    written = (inputs.tokens.q_BTKH, tangents.dh_BTNP, weights_BNT, sums_BNT)
    return Walk(*written, keep_BNJ=weights.keep_BNJ, c_BNHP=None, n_BNH=None)


def _tangents(inputs, product_BNT, dh_BTNP, done_BTN):
    """Returns the Tangents of all tokens, and the cotangent of eps."""
    if product_BNT is None:
        return Tangents(dh_BTNP, None, None), None

    def divided_by(product_BNT, eps_BNT):
        return jnp.maximum(jnp.abs(product_BNT), inputs.floor_BNT) + eps_BNT

    divisor_BNT, pull = jax.vjp(divided_by, product_BNT, inputs.eps_BNT)
    ddivisor_BNT = jnp.zeros_like(divisor_BNT)
    if done_BTN is not None:
        padding = (0, divisor_BNT.shape[2] - done_BTN.shape[1])
        done_BNT = jnp.pad(done_BTN.swapaxes(1, 2), ((0, 0), (0, 0), padding))
        ddivisor_BNT = -done_BNT / divisor_BNT  # of one, which is divisor / divisor
    dproduct_BNT, deps_BNT = pull(ddivisor_BNT)
    return Tangents(dh_BTNP, 1 / divisor_BNT, dproduct_BNT), deps_BNT


def _per_key_head(x_BTNH, sizes):
    """Returns the sum over the heads of values that share a head of keys."""
    if sizes.N == sizes.K:
        return x_BTNH
    x_BTKGH = x_BTNH.reshape(*x_BTNH.shape[:2], sizes.K, -1, sizes.H)
    x_BTKH = jnp.sum(x_BTKGH.astype(jnp.float32), axis=3)
    return x_BTKH.astype(x_BTNH.dtype)
