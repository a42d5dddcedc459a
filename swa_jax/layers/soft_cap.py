"""A smooth bound on scores, gates and logits."""

import jax
import jax.numpy as jnp


def soft_cap(x: jax.Array, /, *, cap: float) -> jax.Array:
    """Returns cap * tanh(x / cap): x where it is small, never beyond -cap and cap."""
    return cap * jnp.tanh(x / cap)
