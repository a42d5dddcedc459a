"""The memory of the mLSTM between two calls."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory.memory import EMPTY


class MLSTMState(NamedTuple):
    """The memory C exp(m), its normaliser n exp(m), and the last token's segment.

    float32 (float64 beside float64 inputs); m is the running maximum of the logarithm
    of the write strength, 0 for the sigmoid gate. The segment id is an int32.
    """

    c_BNHP: jax.Array
    n_BNH: jax.Array
    m_BN: jax.Array
    segment_id_B: jax.Array


def initial_state(
    *,
    batch: int,
    heads: int,
    key_width: int,
    value_width: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> MLSTMState:
    """Returns the empty memory: any segment may follow it."""
    return MLSTMState(
        jnp.zeros((batch, heads, key_width, value_width), dtype),
        jnp.zeros((batch, heads, key_width), dtype),
        jnp.full((batch, heads), EMPTY, dtype),
        jnp.zeros((batch,), jnp.int32),
    )
