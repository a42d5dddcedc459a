"""The definition of the short convolution: a banded matrix per channel."""

import jax
import jax.numpy as jnp

from pallas_kernels.checks import accumulation_dtype


def short_conv_reference(
    x_BSD: jax.Array,
    w_CD: jax.Array,
    bias_D: jax.Array | None,
    runs_BS: jax.Array,
    /,
) -> jax.Array:
    """Returns y_btd = bias_d + sum_s w_{C-1-(t-s), d} x_bsd over 0 <= t - s < C.

    The C - 1 leading tokens of x are the past and have no output; tokens of different
    runs do not mix.
    """
    C, S = w_CD.shape[0], x_BSD.shape[1]
    dtype = accumulation_dtype(x_BSD.dtype)
    lag_TS = jnp.arange(C - 1, S)[:, None] - jnp.arange(S)[None, :]
    inside_TS = (lag_TS >= 0) & (lag_TS < C)
    tap_TS = jnp.clip(C - 1 - lag_TS, 0, C - 1)
    band_TSD = jnp.where(inside_TS[..., None], w_CD.astype(dtype)[tap_TS], 0.0)
    same_BTS = runs_BS[:, C - 1 :, None] == runs_BS[:, None, :]
    y_BTD = jnp.einsum(
        "bts,tsd,bsd->btd",
        same_BTS.astype(dtype),
        band_TSD,
        x_BSD.astype(dtype),
        precision="highest",
    )
    if bias_D is not None:
        y_BTD += bias_D.astype(dtype)[None, None]
    return y_BTD.astype(x_BSD.dtype)
