"""Sums of decays over the tokens of a shard."""

import jax
import jax.numpy as jnp


def behind(x_BTX: jax.Array, /) -> tuple[jax.Array, jax.Array]:
    """Returns x_{t+1} + ... + x_T at each t, and the sum of all.

    Added up from the end, where the sums of log decays that still count are small and
    keep their digits; nothing is subtracted, in the gradient neither.
    """
    sums_BTX = jax.lax.cumsum(x_BTX, axis=1, reverse=True)
    last_B1X = jnp.zeros_like(sums_BTX[:, :1])
    return jnp.concatenate([sums_BTX[:, 1:], last_B1X], axis=1), sums_BTX[:, 0]
