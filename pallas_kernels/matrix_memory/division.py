"""What the queries read, divided by a constant; the divisor's derivative stands beside.

The divisor of h passes zero, and its share of the gradient is sum_P dh h. Behind a norm
of h (the mLSTM's head norm) that sum cancels to nothing, while 1 / divisor multiplies
what rounding leaves of it: of a dh in bfloat16 whole percents of dq, dk and di. So h's
divisor is a constant, and a float32 number per token and head, which is one, has its
derivative: of a norm in closed form (`standardized_read`), else summed before dh is
rounded (`joined`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype
from pallas_kernels.standardized import (
    standardize,
    standardize_gradient,
    standardized,
)
from pallas_kernels.sums import pairwise_sum


class Read(NamedTuple):
    """h in two factors: h_BTNP times one_BTN.

    `h_BTNP` has the dtype of q, and no derivative of its divisor. `one_BTN` is one, in
    the dtype of accumulation, and has it; None where nothing is divided.
    """

    h_BTNP: jax.Array
    one_BTN: Any


def divided(
    h_P: jax.Array, divisor: jax.Array, m: jax.Array | None = None, /
) -> tuple[jax.Array, jax.Array]:
    """Returns the two factors of h_P / divisor[..., None], as Read has them.

    `m`: the logarithm of the scale of both, where it is no constant. It cancels between
    them, and must within the first factor, not between the factors.
    """
    fixed = jax.lax.stop_gradient(divisor)
    if m is not None:
        fixed *= jnp.exp(jax.lax.stop_gradient(m) - m)
    return h_P / fixed[..., None], fixed / divisor


def standardized_read(read: Read, eps: float, /) -> jax.Array:
    """Returns (h - mean(h)) / sqrt(var(h) + eps) of each token and head, in the dtype
    of accumulation, with the derivative of h's divisor.

    The length of h hardly matters to it, and so its divisor: the derivative by the
    factor one is y eps / (var(h) + eps), and nothing is left to cancel.
    """
    h_BTNP, one_BTN = read
    if one_BTN is None:
        return standardized(h_BTNP.astype(accumulation_dtype(h_BTNP.dtype)), eps)
    return _standardized(h_BTNP, one_BTN, eps)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _standardized(h_BTNP, one_BTN, eps) -> Any:
    return standardize(h_BTNP.astype(one_BTN.dtype) * one_BTN[..., None], eps)[0]


def _standardized_forward(h_BTNP, one_BTN, eps):
    return _standardized(h_BTNP, one_BTN, eps), (h_BTNP, one_BTN)


def _standardized_backward(eps, factors, dy_BTNP):
    h_BTNP, one_BTN = factors
    one_BTN1 = one_BTN[..., None]
    y_BTNP, inverse_BTN1 = standardize(h_BTNP.astype(one_BTN.dtype) * one_BTN1, eps)
    dh_BTNP = standardize_gradient(y_BTNP, inverse_BTN1, dy_BTNP) * one_BTN1
    shares_BTNP = dy_BTNP * y_BTNP * (eps * inverse_BTN1 * inverse_BTN1 / one_BTN1)
    return dh_BTNP.astype(h_BTNP.dtype), pairwise_sum(shares_BTNP)


_standardized.defvjp(_standardized_forward, _standardized_backward)


def joined(read: Read, dtype: jax.typing.DTypeLike | None = None, /) -> jax.Array:
    """Returns h_BTNP in `dtype` (None: its own) with the derivative of its divisor.

    Its cotangent comes in that dtype: in a wide one it meets h before it is rounded.
    """
    h_BTNP, one_BTN = read
    dtype = jnp.dtype(h_BTNP.dtype if dtype is None else dtype)
    return h_BTNP.astype(dtype) if one_BTN is None else _times(h_BTNP, one_BTN, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _times(h_BTNP, one_BTN, dtype):
    """Returns h_BTNP times one_BTN; its gradient keeps h as it is, not a wide copy."""
    del one_BTN
    return _cast(h_BTNP, dtype)


def _times_forward(h_BTNP, one_BTN, dtype):
    return _times(h_BTNP, one_BTN, dtype), (h_BTNP, one_BTN)


def _times_backward(dtype, factors, dh_BTNP):
    del dtype
    h_BTNP, one_BTN = factors
    wide_BTNP, dh_BTNP = (_cast(x, one_BTN.dtype) for x in (h_BTNP, dh_BTNP))
    done_BTN = pairwise_sum(wide_BTNP * dh_BTNP)
    # Times one, so that the derivative of this gradient is right too.
    return (dh_BTNP * one_BTN[..., None]).astype(h_BTNP.dtype), done_BTN


def _cast(h_BTNP, dtype):
    """Returns h_BTNP in `dtype`, rounded as it is in its own.

    XLA may leave out a rounding between two wide numbers. What the norm sees and what
    its cotangent meets must be the same, or their products do not cancel.
    """
    kept = jnp.finfo(h_BTNP.dtype)
    return jax.lax.reduce_precision(h_BTNP.astype(dtype), kept.nexp, kept.nmant)


_times.defvjp(_times_forward, _times_backward)
