"""The scale of the memory: the running maximum of the logarithm of what is written.

It is a maximum-plus recurrence over scalars, computed first. Every other quantity is
linear in the memory, so the scale cancels in h but for eps: the chunks take it as a
constant, and the two places where it does count (eps and the scale of the last memory)
carry its derivative. That spares the backward pass sums of large terms that cancel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory.memory import (
    EMPTY,
    LARGEST_EXPONENT,
    Memory,
    Rules,
    Writes,
)
from pallas_kernels.matrix_memory.running_scale import running_scale


class Scaled(NamedTuple):
    """The gates with the heads first, and what is known of the scale.

    `m_BNT` is None where nothing is stabilised; the scale of `start` is a constant.
    The divisor of h_t is max(|n_t . q_t| scale, floor_t) + eps_t; both are None where
    nothing is divided.
    """

    log_i_BNT: jax.Array
    log_f_BNT: jax.Array
    m_BNT: Any
    start: Memory
    floor_BNT: Any
    eps_BNT: Any


def scaled(writes: Writes, memory: Memory, rules: Rules, /) -> Scaled:
    """Returns the gates and the scale after each token."""
    log_i_BNT, log_f_BNT = (x.swapaxes(1, 2) for x in writes[:2])
    m_BNT = None
    if rules.stabilise:
        m_BNT = running_scale(log_i_BNT, log_f_BNT, writes.resets_BT, memory.m_BN)
        memory = started(memory)
    floor_BNT = eps_BNT = None
    if rules.normalize:
        floor_BNT = jnp.ones_like(log_i_BNT)
        eps_BNT = rules.eps * floor_BNT
        if m_BNT is not None:
            fixed_BNT = jax.lax.stop_gradient(m_BNT)
            floor_BNT = jnp.exp(jnp.minimum(-fixed_BNT, LARGEST_EXPONENT))
            eps_BNT = rules.eps * jnp.exp(m_BNT - fixed_BNT)
    return Scaled(log_i_BNT, log_f_BNT, m_BNT, memory, floor_BNT, eps_BNT)


def started(memory: Memory, /) -> Memory:
    """Returns the memory before the first token, whose scale is a constant from here
    on."""
    if memory.m_BN is None:
        return memory
    return _rescaled(memory, jnp.maximum(memory.m_BN, EMPTY))


def finished(memory: Memory, m_BNT: jax.Array | None, /) -> Memory:
    """Returns the memory after the last token, whose scale has a derivative again."""
    if m_BNT is None:
        return memory
    m_BN = m_BNT[..., -1]
    fixed_BN = jax.lax.stop_gradient(m_BN)
    return _rescaled(memory._replace(m_BN=fixed_BN), m_BN, invert=True)


def _rescaled(memory, m_BN, *, invert=False):
    """Returns the memory times one, with the derivative of the scale: into a constant
    scale, or (`invert`) out of it."""
    constant_BN = jax.lax.stop_gradient(m_BN)
    one_BN = jnp.exp(constant_BN - m_BN if invert else m_BN - constant_BN)
    n_BNH = None if memory.n_BNH is None else memory.n_BNH * one_BN[..., None]
    c_BNHP = memory.c_BNHP * one_BN[..., None, None]
    return Memory(c_BNHP, n_BNH, m_BN if invert else constant_BN)
