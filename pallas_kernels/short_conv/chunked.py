"""The short convolution as shifted multiply-adds: one pass over the input."""

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def short_conv_chunked(
    x_BSD: jax.Array,
    w_CD: jax.Array,
    bias_D: jax.Array | None,
    runs_BS: jax.Array,
    /,
) -> jax.Array:
    """Returns the convolution of shape BTD, T = S - C + 1; see reference.py."""
    C, S = w_CD.shape[0], x_BSD.shape[1]
    T = S - C + 1
    dtype = accumulation_dtype(x_BSD.dtype)
    own_BT = runs_BS[:, C - 1 :]
    y_BTD = jnp.zeros((), dtype)
    for tap in range(C):
        same_BT = runs_BS[:, tap : tap + T] == own_BT
        x_BTD = x_BSD[:, tap : tap + T].astype(dtype)
        seen_BTD = jnp.where(same_BT[..., None], x_BTD, 0.0)
        y_BTD += seen_BTD * w_CD[tap].astype(dtype)[None, None]
    if bias_D is not None:
        y_BTD += bias_D.astype(dtype)[None, None]
    return y_BTD.astype(x_BSD.dtype)
