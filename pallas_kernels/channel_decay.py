"""Decay per key channel within a chunk of tokens: the weight of each pair of tokens.

With b_t = g_1 + ... + g_t, the sum of a channel's log decays g <= 0 since the start of
the chunk, token t reads token s with the weight exp(b_t - b_s). As a matmul of rows
exp(b_t) and columns exp(-b_s) that would overflow. Here the chunk is cut into
sub-blocks of 16 tokens: a pair of different sub-blocks meets at the start of the later
one, where both exponents are at most 0, and a pair inside one is weighted by itself.
Every exponent is a sum over its own stretch of tokens, never a difference of longer
sums: a strong decay costs the weak ones beside it no digits.

Source: Yang et al. 2024, arXiv:2312.06635, section 4.3, "secondary-level chunking".

C tokens of a chunk, cut into I (or J) sub-blocks of L tokens; H channels. Any axes may
stand before these.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.checks import accumulation_dtype

SUB_BLOCK = 16  # tokens
EMPTIED = -1e30  # log decay of a memory of which exactly nothing is kept


class ChannelDecay(NamedTuple):
    """What a chunk's decays leave: weights between 0 and 1.

    - `read_CH`: exp(b_t), of the memory before the chunk where token t reads it;
    - `write_CH`: exp(b_C - b_s), of token s in the memory after the chunk;
    - `keep_H`: exp(b_C), of the memory before the chunk in the one after it.

    The others are those of `products`: from the start of sub-block I to its tokens,
    from the tokens of sub-block J to the start of sub-block I + 1, and from token to
    token inside a sub-block.
    """

    read_CH: jax.Array
    write_CH: jax.Array
    keep_H: jax.Array
    enter_ILH: jax.Array
    leave_IJLH: jax.Array
    inside_ILLH: jax.Array


def channel_decay(log_decay_CH: jax.Array, /) -> ChannelDecay:
    """Returns the weights of a chunk whose token t decays the memory by
    exp(log_decay_t) before it writes.

    No exponent is above 0: neither a weight nor a gradient overflows. The log decay
    EMPTIED leaves exactly nothing, and sums of it are finite.
    """
    log_decay_CH = jnp.maximum(log_decay_CH, EMPTIED)
    log_decay_ILH = _sub_blocks(log_decay_CH)
    total_IH = jnp.sum(log_decay_ILH, axis=-2)
    between_IJH = _stretches(total_IH[..., :-1, :])
    after_JLH = _after(log_decay_ILH)[..., None, :-1, :, :]
    sums = ChannelDecay(
        read_CH=_until(log_decay_CH),
        write_CH=_after(log_decay_CH),
        keep_H=jnp.sum(log_decay_CH, axis=-2),
        enter_ILH=_until(log_decay_ILH),
        leave_IJLH=between_IJH[..., None, :] + after_JLH,
        inside_ILLH=_stretches(log_decay_ILH),
    )
    return ChannelDecay(*map(jnp.exp, sums))


def products(
    decay: ChannelDecay, rows_CH: jax.Array, columns_CH: jax.Array, /
) -> jax.Array:
    """Returns A_CC, A_ts = sum_h rows_th columns_sh exp(b_th - b_sh), 0 where s > t.

    That is what token t reads of token s after its own decay. Matmuls take the dtype of
    rows and columns; A is in that of the decays.
    """
    rows_ILH, columns_ILH = _sub_blocks(rows_CH), _sub_blocks(columns_CH)
    enter_ILH = weighted(rows_ILH, decay.enter_ILH)[..., 1:, :, :]
    leave_IJLH = weighted(columns_ILH[..., None, :-1, :, :], decay.leave_IJLH)
    across_ILJL = dot("...ith,...ijsh->...itjs", enter_ILH, leave_IJLH)
    wide = decay.inside_ILLH.dtype
    pairs_ILLH = rows_ILH.astype(wide)[..., None, :] * decay.inside_ILLH
    pairs_ILLH *= columns_ILH.astype(wide)[..., None, :, :]
    inside_ILL = jnp.sum(pairs_ILLH, axis=-1)
    return _assembled(across_ILJL, inside_ILL, rows_CH.shape[-2])


def products_before(
    decay: ChannelDecay, rows_CH: jax.Array, columns_CH: jax.Array, /
) -> jax.Array:
    """Returns A_CC, A_ts = sum_h rows_th columns_sh exp(b_{t-1,h} - b_sh), 0 where
    s >= t: what token t reads of token s before its own decay.
    """
    # Row t + 1 reads it where row t would, were it token t's.
    next_CC = products(decay, jnp.roll(rows_CH, -1, axis=-2), columns_CH)
    return _delayed(next_CC, 0.0)


def read_before(decay: ChannelDecay, /) -> jax.Array:
    """Returns exp(b_{t-1}), of the memory before the chunk where token t reads it
    before its own decay."""
    return _delayed(decay.read_CH, 1.0)


def dot(equation: str, x: jax.Array, y: jax.Array, /) -> jax.Array:
    """Returns the einsum: inputs in the narrower dtype, sums in a wide one."""
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        equation,
        x.astype(narrow),
        y.astype(narrow),
        preferred_element_type=accumulation_dtype(narrow),
        precision="highest" if narrow.itemsize >= 4 else None,
    )


def weighted(x: jax.Array, weight: jax.Array, /) -> jax.Array:
    """Returns x times the weight, in the dtype of x."""
    return (x.astype(weight.dtype) * weight).astype(x.dtype)


def _sub_blocks(x_CH):
    """Returns x_ILH, zero in the tokens added: they keep all and write nothing."""
    C, H = x_CH.shape[-2:]
    length = min(SUB_BLOCK, C)
    padding = [(0, 0)] * x_CH.ndim
    padding[-2] = (0, -C % length)
    return jnp.pad(x_CH, padding).reshape(*x_CH.shape[:-2], -1, length, H)


def _until(x_LH):
    """Returns x_1 + ... + x_t at t."""
    return _sums("tj,...jh->...th", np.tri(x_LH.shape[-2]), x_LH)


def _after(x_LH):
    """Returns x_{s+1} + ... + x_L at s."""
    return _sums("js,...jh->...sh", np.tri(x_LH.shape[-2], k=-1), x_LH)


def _stretches(x_LH):
    """Returns x_{s+1} + ... + x_t at (t, s), minus infinity where s > t."""
    until_LL = np.tri(x_LH.shape[-2])
    stretch_LLL = until_LL[:, None, :] * (1 - until_LL)[None, :, :]  # s < j <= t
    sums_LLH = _sums("tsj,...jh->...tsh", stretch_LLL, x_LH)
    later_LL1 = np.where(until_LL, 0.0, -np.inf)[..., None].astype(x_LH.dtype)
    return sums_LLH + later_LL1.reshape((1,) * (x_LH.ndim - 2) + later_LL1.shape)


def _sums(equation, chosen, x_LH):
    """Returns sums of the chosen tokens' x: as a product with ones and zeros, which
    takes one pass where a cumulative sum takes several."""
    return jnp.einsum(equation, chosen.astype(x_LH.dtype), x_LH, precision="highest")


def _delayed(x_CH, first):
    """Returns x_{t-1} at t, `first` at the first token."""
    first_1H = jnp.full_like(x_CH[..., :1, :], first)
    return jnp.concatenate([first_1H, x_CH[..., :-1, :]], axis=-2)


def _assembled(across_ILJL, inside_ILL, length):
    """Returns A_CC of the products across sub-blocks, of rows from the second sub-block
    on and columns up to the last but one, and of those inside."""
    *leading, I, L, _ = inside_ILL.shape
    padding = [(0, 0)] * len(leading) + [(1, 0), (0, 0), (0, 1), (0, 0)]
    own_I1J1 = jnp.eye(I, dtype=bool)[:, None, :, None]
    own_I1J1 = own_I1J1.reshape((1,) * len(leading) + own_I1J1.shape)
    across_ILJL = jnp.pad(across_ILJL, padding)
    a_ILJL = jnp.where(own_I1J1, inside_ILL[..., None, :], across_ILJL)
    return a_ILJL.reshape(*leading, I * L, I * L)[..., :length, :length]
