"""The RMS norm over the last axis."""

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def rms_norm(x: jax.Array, scale: jax.Array, /, *, eps: float | jax.Array) -> jax.Array:
    """Returns w x / sqrt(mean(x^2) + eps) over the last axis, in float32 or wider.

    `scale` is w, as long as that axis. Source: Zhang and Sennrich 2019, eq. 4,
    arXiv:1910.07467.
    """
    y = x.astype(accumulation_dtype(x.dtype))
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return y * jnp.expand_dims(scale.astype(y.dtype), tuple(range(x.ndim - 1)))
