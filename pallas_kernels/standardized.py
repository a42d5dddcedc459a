"""What a norm over heads makes of them before its scale: mean zero, variance one."""

from functools import partial
from typing import Any

import jax

from pallas_kernels.sums import pairwise_sum


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardized(x: jax.Array, eps: float, /) -> Any:
    """Returns (x - mean(x)) / sqrt(var(x) + eps) over the last axis, in x's dtype."""
    return standardize(x, eps)[0]


def standardize(x: jax.Array, eps: float, /) -> tuple[jax.Array, jax.Array]:
    """Returns the standardized x, and 1 / sqrt(var(x) + eps) with a last axis of 1."""
    y = x - _mean(x)
    inverse = jax.lax.rsqrt(_mean(y * y) + eps)
    return y * inverse, inverse


def standardize_gradient(y: jax.Array, inverse: jax.Array, dy: jax.Array, /):
    """Returns the cotangent of x, given those two and the cotangent of y."""
    return inverse * (dy - _mean(dy) - y * _mean(dy * y))


def _forward(x, eps):
    y, inverse = standardize(x, eps)
    return y, (y, inverse)


def _backward(eps, residuals, dy):
    del eps
    y, inverse = residuals
    return (standardize_gradient(y, inverse, dy),)


standardized.defvjp(_forward, _backward)


def _mean(x):
    return pairwise_sum(x)[..., None] * (1 / x.shape[-1])
