"""Sums over the last axis whose rounding does not grow with their length."""

import jax
import jax.numpy as jnp

from pallas_kernels.backend import target_platform


def pairwise_sum(x: jax.Array, /) -> jax.Array:
    """Returns the sum over the last axis, of halves that are summed in the same way.

    XLA on a CPU adds n terms one after the other, with a rounding error that grows as
    n, where that of halves grows as log n (Higham 1993, SIAM J. Sci. Comput. 14). On a
    GPU XLA sums in halves of its own.
    """
    if target_platform() != "cpu":
        return jnp.sum(x, axis=-1)
    while (n := x.shape[-1]) > 1:
        half = (n + 1) // 2
        second = x[..., half:]
        if n % 2:
            second = jnp.pad(second, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
        x = x[..., :half] + second
    return x[..., 0]
