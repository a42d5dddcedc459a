"""The values of a model's first RWKV-7 layer, which the later ones mix with theirs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class FirstValues(NamedTuple):
    """What goes from layer to layer beside the residual stream.

    `value_BTNP` counts where `there`, a scalar, is true: from the first such layer on.
    """

    value_BTNP: jax.Array
    there: jax.Array


def none_yet(shape_BTNP: tuple[int, ...], dtype: Any, /) -> FirstValues:
    """Returns what goes into a model's first layer."""
    return FirstValues(jnp.zeros(shape_BTNP, dtype), jnp.zeros((), bool))


def with_first_values(
    value_BTNP: jax.Array, share_BTNP: jax.Array, first: FirstValues, /
) -> tuple[jax.Array, FirstValues]:
    """Returns value + (first - value) share, in the dtype of the values, and what goes
    to the next layer. The values of the first layer are those that it has."""
    first_BTNP = jnp.where(first.there, first.value_BTNP, value_BTNP)
    wide_BTNP = value_BTNP.astype(share_BTNP.dtype)
    wide_BTNP += (first_BTNP.astype(share_BTNP.dtype) - wide_BTNP) * share_BTNP
    mixed_BTNP = wide_BTNP.astype(value_BTNP.dtype)
    return mixed_BTNP, FirstValues(first_BTNP, jnp.ones((), bool))
