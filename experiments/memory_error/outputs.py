"""What is compared: values and gradients of two losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.standardized import standardized

VALUES = ("h", "c", "n", "m")  # the output, and the memory after the last token
GRADIENTS = ("dq", "dk", "dv", "di", "df", "dc", "dn", "dm")  # the last: memory before
LOSSES = ("norm", "projection")
NORM_EPS = 1e-6  # of the layer's head norm


class Outputs(NamedTuple):
    """Arrays by name, on the host; the gradients by loss first."""

    values: dict[str, np.ndarray]
    gradients: dict[str, dict[str, np.ndarray]]


def cotangents(h_BTNP: jax.Array, weights_BTNP: jax.Array, /) -> dict[str, jax.Array]:
    """Returns the cotangent of h of each loss, in h's dtype: rounded where h is narrow,
    as in a model.

    "projection" is sum(w h). "norm" is sum(w y) of the y that the layer makes of each
    head, y = (h - mean(h)) / sqrt(var(h) + eps), which hardly depends on the length of
    h: there a divisor of h that is held constant does no harm.
    """
    dtype = jnp.float64 if h_BTNP.dtype == jnp.float64 else jnp.float32
    weights_BTNP = weights_BTNP.astype(dtype)
    norm = lambda h_BTNP: standardized(h_BTNP, NORM_EPS)  # noqa: E731
    _, pullback = jax.vjp(norm, h_BTNP.astype(dtype))
    found = {"norm": pullback(weights_BTNP)[0], "projection": weights_BTNP}
    return {loss: found[loss].astype(h_BTNP.dtype) for loss in LOSSES}
