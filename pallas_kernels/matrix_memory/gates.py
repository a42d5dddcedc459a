"""The gates of every chunk: all that is known before the memory is, in plain JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory.memory import EMPTY, Writes

STEPS = 64  # of the coarse logarithms, per nat: their sums stay exact


class Gates(NamedTuple):
    """Logarithms of the weights in each chunk, EMPTY where nothing passes; `keep` of
    shape BNJ, the others BNJC. Or, in a backward pass, their cotangents.

    Token s counts in the output at t >= s with
    exp((coarse_t - coarse_s) + (row_t + column_s)), where both stand in one run; the
    memory before the chunk with exp(old_t). Token s enters the memory after the chunk
    with exp(write_s), the memory before it with exp(keep). Where s = t the weight is
    exp(own_t), which no decay touches: its cotangent would drown those of the decays.

    The decay since the chunk's start is coarse_t, in steps that add without rounding,
    and a small rest in row_t and column_t: a difference of two large sums would round
    off the weights near the diagonal, which are the ones that count.
    """

    row: jax.Array
    column: jax.Array
    coarse: jax.Array  # a constant, in steps that float32 adds exactly
    old: jax.Array
    write: jax.Array
    keep: jax.Array
    own: jax.Array


def padded(writes: Writes, multiple: int, /) -> Writes:
    """Returns the writes of a whole multiple of tokens: the last ones write nothing."""

    def longer(x_BT, fill):
        padding = [(0, 0)] * x_BT.ndim
        padding[1] = (0, -x_BT.shape[1] % multiple)
        return jnp.pad(x_BT, padding, constant_values=fill)

    resets_BT = writes.resets_BT
    if resets_BT is not None:
        resets_BT = longer(resets_BT, False)
    return Writes(
        longer(writes.log_i_BTN, EMPTY), longer(writes.log_f_BTN, 0), resets_BT
    )


def cut(x_BNT: jax.Array, chunk: int, /) -> jax.Array:
    """Returns x in chunks, x_BNJC."""
    return x_BNT.reshape(*x_BNT.shape[:2], -1, chunk)


def runs_of(resets_BT: jax.Array | None, chunk: int, /) -> jax.Array | None:
    """Returns the number of resets from the chunk's start to each token, B1JC int32."""
    if resets_BT is None:
        return None
    return jnp.cumsum(cut(resets_BT[:, None], chunk), axis=-1, dtype=jnp.int32)


def chunk_gates(
    log_i_BNT: jax.Array,
    log_f_BNT: jax.Array,
    m_BNT: jax.Array | None,
    m_BN: jax.Array | None,
    runs_B1JC: jax.Array | None,
    /,
    *,
    chunk: int,
) -> Gates:
    """Returns the gates of each chunk.

    `m_BNT` is the scale after each token, `m_BN` the one before the first; their
    derivatives are not taken. None is zero.
    """
    log_i_BNJC, log_f_BNJC = cut(log_i_BNT, chunk), cut(log_f_BNT, chunk)
    small, coarse = decay_sums(log_f_BNJC, runs_B1JC)
    (small_BNJC, small_after_BNJC), (coarse_BNJC, coarse_after_BNJC) = small, coarse
    row_BNJC, column_BNJC = small_BNJC, log_i_BNJC - small_BNJC
    decay_BNJC = coarse_BNJC + small_BNJC
    after_BNJC = coarse_after_BNJC + small_after_BNJC
    old_BNJC, write_BNJC = decay_BNJC, after_BNJC + log_i_BNJC
    keep_BNJ = decay_BNJC[..., -1]
    if m_BNT is not None and m_BN is not None:
        m_BNJC, m_BN = jax.lax.stop_gradient((cut(m_BNT, chunk), m_BN))
        last_BNJ = m_BNJC[..., -1]
        before_BNJ = jnp.concatenate([m_BN[..., None], last_BNJ[..., :-1]], axis=-1)
        row_BNJC = row_BNJC - m_BNJC
        old_BNJC = decay_BNJC - m_BNJC + before_BNJ[..., None]
        write_BNJC = write_BNJC - last_BNJ[..., None]
        keep_BNJ = keep_BNJ + before_BNJ - last_BNJ
    if runs_B1JC is not None:
        last_B1J = runs_B1JC[..., -1]
        old_BNJC = jnp.where(runs_B1JC == 0, old_BNJC, EMPTY)
        write_BNJC = jnp.where(runs_B1JC == last_B1J[..., None], write_BNJC, EMPTY)
        keep_BNJ = jnp.where(last_B1J == 0, keep_BNJ, EMPTY)
    return Gates(
        row_BNJC,
        column_BNJC,
        coarse_BNJC,
        old_BNJC,
        write_BNJC,
        keep_BNJ,
        log_i_BNJC if m_BNT is None else log_i_BNJC - m_BNJC,
    )


def decay_sums(
    log_f_BNJC: jax.Array, runs_B1JC: jax.Array | None, /
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the sums of the small rest of log f, and those of its coarse part: each
    over the tokens of the run up to and with each token, and behind it."""
    coarse_BNJC = jax.lax.stop_gradient(jnp.round(log_f_BNJC * STEPS) / STEPS)
    return _sums(log_f_BNJC - coarse_BNJC, runs_B1JC), _sums(coarse_BNJC, runs_B1JC)


def within(gates: Gates, runs_JB1C: jax.Array | None, /) -> jax.Array:
    """Returns the logarithm of the weight of token s in the output at t, JBNCC, EMPTY
    where nothing passes."""
    within_JBNCC = gates.row[..., :, None] + gates.column[..., None, :]
    within_JBNCC += gates.coarse[..., :, None] - gates.coarse[..., None, :]
    C, lead = within_JBNCC.shape[-1], (1,) * (within_JBNCC.ndim - 2)
    within_JBNCC = jnp.where(
        jnp.eye(C, dtype=bool).reshape(*lead, C, C), gates.own[..., None], within_JBNCC
    )
    seen_JBNCC = jnp.tril(jnp.ones((C, C), bool)).reshape(*lead, C, C)
    if runs_JB1C is not None:
        seen_JBNCC = seen_JBNCC & (runs_JB1C[..., :, None] == runs_JB1C[..., None, :])
    return jnp.where(seen_JBNCC, within_JBNCC, EMPTY)


def _sums(x_BNJC, runs_B1JC):
    """Returns the sums of x over each chunk up to and with each token, and behind it;
    only over the tokens of its run, but for the one that starts it.

    Triangular matmuls: no sum of theirs, nor of their transposes in the backward pass,
    runs over more than a chunk, and no sum is the difference of two.
    """
    C = x_BNJC.shape[-1]
    upper_CC = jnp.triu(jnp.ones((C, C), x_BNJC.dtype))
    sums = jnp.concatenate([upper_CC, 1 - upper_CC], axis=1)
    terms = "sc"
    if runs_B1JC is not None:
        runs_BJC = runs_B1JC[:, 0]
        starts_BJC = jnp.diff(runs_BJC, axis=-1, prepend=0) > 0
        same_BJCC = runs_BJC[..., :, None] == runs_BJC[..., None, :]
        same_BJCC &= ~starts_BJC[..., :, None]
        sums = jnp.where(jnp.tile(same_BJCC, (1, 1, 1, 2)), sums[None, None], 0.0)
        terms = "bjsc"
    both = jnp.einsum(f"bnjs,{terms}->bnjc", x_BNJC, sums, precision="highest")
    return both[..., :C], both[..., C:]
