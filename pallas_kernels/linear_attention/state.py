"""The memory of linear attention between two calls."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LinearAttentionState(NamedTuple):
    """The memory S of every value head, and the last token's segment.

    float32 (float64 beside float64 inputs). The segment id is an int32.
    """

    s_BNHP: jax.Array
    segment_id_B: jax.Array


def initial_state(
    *,
    batch: int,
    heads: int,
    key_width: int,
    value_width: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> LinearAttentionState:
    """Returns the empty memory of `heads` value heads: any segment may follow it."""
    return LinearAttentionState(
        jnp.zeros((batch, heads, key_width, value_width), dtype),
        jnp.zeros((batch,), jnp.int32),
    )
