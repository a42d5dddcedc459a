"""Norms over the residual stream and over heads, in float32 inside."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.rms_norm import rms_norm
from pallas_kernels.sums import pairwise_sum


class RMSNorm(nnx.Module):
    """y = w x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Returns the normalised x in x's dtype."""
        return rms_norm(x, self.scale[...], eps=self.eps).astype(x.dtype)


class HeadNorm(nnx.Module):
    """y = w (x - mean(x)) / sqrt(var(x) + eps) (+ b) over each head alone.

    Behind an mLSTM that has just been initialised x has an rms of about 2e-4, below
    sqrt(eps): eps sets the output's scale there and is 1e-6, not a free choice.
    """

    def __init__(
        self, heads: int, width: int, *, eps: float = 1e-6, bias: bool = False
    ):
        self.scale = nnx.Param(jnp.ones((heads * width,), jnp.float32))
        self.bias = (
            nnx.Param(jnp.zeros((heads * width,), jnp.float32)) if bias else None
        )
        self.eps = eps

    def __call__(self, x_BTNP: jax.Array, /) -> jax.Array:
        """Returns y_BTNP in float32."""
        scale_11NP = self.scale[...].reshape(1, 1, *x_BTNP.shape[2:])
        y_BTNP: Any = standardized(x_BTNP.astype(jnp.float32), self.eps)
        y_BTNP = scale_11NP * y_BTNP
        if self.bias is None:
            return y_BTNP
        return y_BTNP + self.bias[...].reshape(1, 1, *x_BTNP.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardized(x: jax.Array, eps: float, /) -> jax.Array:
    """Returns (x - mean(x)) / sqrt(var(x) + eps) over the last axis.

    In front of it stands the mLSTM's divisor, which passes zero and multiplies what
    rounding leaves of sum(dx x), a sum that cancels: hence pairwise sums, both ways.
    """
    return _standardized(x, eps)[0]


def _standardized(x, eps):
    y = x - _mean(x)
    inverse = jax.lax.rsqrt(_mean(y * y) + eps)
    return y * inverse, inverse


def _standardized_forward(x, eps):
    y, inverse = _standardized(x, eps)
    return y, (y, inverse)


def _standardized_backward(eps, residuals, dy):
    del eps
    y, inverse = residuals
    return (inverse * (dy - _mean(dy) - y * _mean(dy * y)),)


standardized.defvjp(_standardized_forward, _standardized_backward)


def _mean(x):
    return pairwise_sum(x)[..., None] * (1 / x.shape[-1])


def unit_length(x: jax.Array, /, *, eps: float = 1e-6) -> jax.Array:
    """Returns x / sqrt(sum(x^2) + eps) over the last axis, in x's dtype."""
    wide = x.astype(jnp.float32)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + eps)).astype(x.dtype)
