"""The inverse of a unit lower triangular matrix, in batched products."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def unit_lower_inverse(strict_XCC: jax.Array, /) -> jax.Array:
    """Returns (I + strict)^{-1} of each matrix, in float32 or float64 as it came.

    X stands for any leading axes. Only what is below the diagonal is read. Of a matrix
    in blocks the inverse is [[A, 0], [-B L A, B]], where A and B are the inverses of
    the halves and L is the corner below: as stable as a substitution row by row, where
    powers of `strict` would grow and cancel.
    """
    C = strict_XCC.shape[-1]
    padding = [(0, 0)] * (strict_XCC.ndim - 2)
    padding += [(0, (1 << (C - 1).bit_length()) - C)] * 2
    return _inverse(jnp.pad(strict_XCC, padding))[..., :C, :C]


def _inverse(strict_XCC):
    """Returns the inverses where C is a power of two."""
    half = strict_XCC.shape[-1] // 2
    if half == 0:
        return jnp.ones_like(strict_XCC)
    first_XCC, last_XCC = (strict_XCC[..., i, i] for i in _halves(half))
    halves_XZCC = _inverse(jnp.stack([first_XCC, last_XCC], axis=-3))
    first_XCC, last_XCC = halves_XZCC[..., 0, :, :], halves_XZCC[..., 1, :, :]
    corner_XCC = -_dot(last_XCC, _dot(strict_XCC[..., half:, :half], first_XCC))
    upper_XCC = jnp.concatenate([first_XCC, jnp.zeros_like(first_XCC)], axis=-1)
    lower_XCC = jnp.concatenate([corner_XCC, last_XCC], axis=-1)
    return jnp.concatenate([upper_XCC, lower_XCC], axis=-2)


def _halves(half):
    """Returns the rows, or columns, of the first and of the last half."""
    return slice(None, half), slice(half, None)


@unit_lower_inverse.defjvp
def _derivative(primals, tangents):
    """Returns the inverse and -inverse tangent inverse, whose transpose is the exact
    gradient too."""
    inverse_XCC = unit_lower_inverse(*primals)
    tangent_XCC = jnp.tril(tangents[0], -1)
    return inverse_XCC, -_dot(inverse_XCC, _dot(tangent_XCC, inverse_XCC))


def _dot(x_XCC, y_XCC):
    """Returns x @ y, multiplied in full."""
    return jnp.matmul(x_XCC, y_XCC, precision="highest")
