"""The decays of every chunk as the GPU kernels read them, and their gradient, in plain
JAX."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

STEPS = 64  # of the coarse sums, per nat
FORGOTTEN = -128.0  # nats; exp of it is 0 in float32


class Decays(NamedTuple):
    """The sums of the log decays from the start of a chunk to each of its tokens, that
    one included; and exp of the whole sum of each of the J chunks.

    A sum is coarse + small: `coarse` is in steps that float32 adds and subtracts
    without rounding, so that the difference of two sums keeps the digits of the decays
    between them.
    """

    coarse_BTNH: Any
    small_BTNH: Any
    keep_BNJH: Any


def limited(log_decay_BTNH: jax.Array, resets_BT: jax.Array | None, /) -> jax.Array:
    """Returns the log decays, none below FORGOTTEN, which is also those of resets."""
    log_decay_BTNH = jnp.maximum(log_decay_BTNH, FORGOTTEN)
    if resets_BT is None:
        return log_decay_BTNH
    return jnp.where(resets_BT[..., None, None], FORGOTTEN, log_decay_BTNH)


def decays_of(log_decay_BTNH: jax.Array, /, *, chunk: int) -> Decays:
    """Returns the decays of all chunks from limited ones."""
    coarse_BTNH = jnp.round(log_decay_BTNH * STEPS) / STEPS
    lower_CC = jnp.tril(jnp.ones((chunk, chunk), jnp.float32))

    def sums(x_BTNH):
        return _sums(lower_CC, _cut(x_BTNH, chunk))

    coarse_BJCNH, small_BJCNH = sums(coarse_BTNH), sums(log_decay_BTNH - coarse_BTNH)
    keep_BJNH = jnp.exp(coarse_BJCNH[:, :, -1] + small_BJCNH[:, :, -1])
    T = log_decay_BTNH.shape[1]
    return Decays(
        _joined(coarse_BJCNH, T), _joined(small_BJCNH, T), keep_BJNH.swapaxes(1, 2)
    )


def decay_gradient(
    later_BTNH: jax.Array,
    earlier_BTNH: jax.Array,
    dkeep_BNJH: jax.Array,
    resets_BT: jax.Array | None,
    /,
    *,
    chunk: int,
) -> jax.Array:
    """Returns the cotangent of the limited log decays.

    The decay at u gets what arrives at every sum of decays that has it:

    - those from the chunk's start to tokens t >= u: `later` at t;
    - those from tokens s < u on, to another token of the run or to the chunk's end.
      `earlier` at s is what arrives at the sums that start behind s, minus what arrives
      at those that end at s: added up over s < u, sums that end before u cancel;
    - the whole sum of the chunk: `dkeep`.

    It adds up nothing across a reset, so that nothing crosses one by rounding.
    """
    C = chunk
    upper_CC = jnp.triu(jnp.ones((C, C), jnp.float32))
    dsums_BJCNH = _sums(upper_CC, _cut(later_BTNH, C))
    dsums_BJCNH += dkeep_BNJH.swapaxes(1, 2)[:, :, None]
    crossed = 1 - upper_CC
    if resets_BT is not None:
        runs_BJC = jnp.cumsum(_cut(resets_BT, C), axis=-1, dtype=jnp.int32)
        same_BJCC = runs_BJC[..., :, None] == runs_BJC[..., None, :]
        crossed = jnp.where(same_BJCC, crossed[None, None], 0.0)
    dsums_BJCNH += _sums(crossed, _cut(earlier_BTNH, C))
    return _joined(dsums_BJCNH, later_BTNH.shape[1])


def _sums(terms, x_BJCNH):
    """Returns the sums of x over the tokens s of a chunk with weights terms_ts, one
    matrix or one for each chunk. No sum is the difference of two."""
    # One for each chunk in any case: then the matmul takes x, and leaves y, in place.
    terms_BJCC = jnp.broadcast_to(terms, (*x_BJCNH.shape[:2], *terms.shape[-2:]))
    equation = "bjts,bjsnh->bjtnh"
    return jnp.einsum(equation, terms_BJCC, x_BJCNH, precision="highest")


def _cut(x_BT, chunk):
    """Returns x in chunks, x_BJC, the tokens that do not exist zero."""
    padding = [(0, 0)] * x_BT.ndim
    padding[1] = (0, -x_BT.shape[1] % chunk)
    x_BT = jnp.pad(x_BT, padding)
    return x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:])


def _joined(x_BJC, length):
    """Returns x_BT of chunks, without the tokens that do not exist."""
    x_BT = x_BJC.reshape(x_BJC.shape[0], -1, *x_BJC.shape[3:])
    return x_BT[:, :length]
