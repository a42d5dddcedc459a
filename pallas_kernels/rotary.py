"""Rotary position embedding whose angles stay exact at large positions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.checks import accumulation_dtype

# A position is split into BLOCK * high + low. A float32 product position * frequency is
# off by a tenth of a radian at position one million; both parts of the split are not.
BLOCK = 1024


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, /, *, theta: float) -> jax.Array:
    """Returns x with pair (x_j, x_{j + H/2}) turned by position * theta^(-2j/H).

    The dot product of a rotated query and a rotated key depends on the difference of
    their positions alone. Angles are within 1e-4 radians of the exact ones (modulo
    2 pi) for 0 <= position < 4 million; the rotation is in float32 (float64 for
    float64), the result in x's dtype. The two halves of a head are paired, as in Llama
    and GPT-NeoX, not neighbours. Source: Su et al. 2021, eq. 34, arXiv:2104.09864.
    """
    return _turned(x_BTNH, positions_BT, theta, 1.0)


def turn_back(
    x_BTNH: jax.Array, positions_BT: jax.Array, /, *, theta: float
) -> jax.Array:
    """Returns what `rotate` made x of: the rotation by the opposite angles."""
    return _turned(x_BTNH, positions_BT, theta, -1.0)


def _turned(x_BTNH, positions_BT, theta, sign):
    cos_BTF, sin_BTF = tables(positions_BT, width=x_BTNH.shape[-1], theta=theta)
    wide_BTNH = x_BTNH.astype(accumulation_dtype(x_BTNH.dtype))
    return turned(wide_BTNH, cos_BTF, sign * sin_BTF).astype(x_BTNH.dtype)


def turned(x_BTNH: jax.Array, cos_BTF: jax.Array, sin_BTF: jax.Array, /) -> jax.Array:
    """Returns x with pair (x_j, x_{j + H/2}) turned by the angles of these cosines and
    sines, in x's dtype; tables of batch 1 serve every row."""
    cos_BT1F, sin_BT1F = (
        table_BTF[:, :, None].astype(x_BTNH.dtype) for table_BTF in (cos_BTF, sin_BTF)
    )
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    halves = [
        first * cos_BT1F - second * sin_BT1F,
        second * cos_BT1F + first * sin_BT1F,
    ]
    return jnp.concatenate(halves, axis=-1)


def tables(
    positions_BT: jax.Array, /, *, width: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of `angles`, each of shape (B, T, width / 2)."""
    angles_BTF = angles(positions_BT, width=width, theta=theta)
    return jnp.cos(angles_BTF), jnp.sin(angles_BTF)


def angles(positions_BT: jax.Array, /, *, width: int, theta: float) -> jax.Array:
    """Returns the angles in radians, modulo whole turns, of shape (B, T, width / 2)."""
    coarse_F, fine_F, frequency_F = _frequencies(width, theta)
    high_BT1 = (positions_BT // BLOCK).astype(jnp.float32)[..., None]
    low_BT1 = (positions_BT % BLOCK).astype(jnp.float32)[..., None]
    # high * coarse is exact: 12 bits times 12 bits. Its whole turns drop out.
    turns_BTF = high_BT1 * coarse_F[None, None]
    turns_BTF = turns_BTF - jnp.round(turns_BTF) + high_BT1 * fine_F[None, None]
    return 2 * math.pi * turns_BTF + low_BT1 * frequency_F[None, None]


@functools.cache
def _frequencies(width: int, theta: float) -> tuple[np.ndarray, ...]:
    """Returns turns per block (leading 12 bits, the rest) and radians per position."""
    frequency_F = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    turns_F = BLOCK * frequency_F / (2 * math.pi)
    turns_F -= np.round(turns_F)
    coarse_F = np.round(turns_F * 2**12) / 2**12
    parts = (coarse_F, turns_F - coarse_F, frequency_F)
    return tuple(part.astype(np.float32) for part in parts)
