"""Norms over the residual stream and over heads, in float32 inside."""

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.rms_norm import rms_norm
from pallas_kernels.standardized import standardized


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
        return self.scaled(standardized(x_BTNP.astype(jnp.float32), self.eps))

    def scaled(self, x_BTNP: jax.Array, /) -> jax.Array:
        """Returns y_BTNP of heads that have mean zero and variance one already."""
        y_BTNP = self.scale[...].reshape(1, 1, *x_BTNP.shape[2:]) * x_BTNP
        if self.bias is None:
            return y_BTNP
        return y_BTNP + self.bias[...].reshape(1, 1, *x_BTNP.shape[2:])


def unit_length(x: jax.Array, /, *, eps: float = 1e-6) -> jax.Array:
    """Returns x / sqrt(sum(x^2) + eps) over the last axis, in x's dtype."""
    wide = x.astype(jnp.float32)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + eps)).astype(x.dtype)
