"""What mixers say of their gates: scalars of a few tokens, for the log of a run."""

import jax
import jax.numpy as jnp


def past_of(
    x_BTD: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | jax.Array | None,
    /,
) -> jax.Array:
    """Returns seen_BTS: whether token t reads token s, by window and segment."""
    batch, length = x_BTD.shape[:2]
    distance_TS = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    seen_TS = distance_TS >= 0
    if window is not None:
        seen_TS = seen_TS & (distance_TS < window)
    seen_BTS = jnp.broadcast_to(seen_TS[None], (batch, length, length))
    if segment_ids_BT is None:
        return seen_BTS
    return seen_BTS & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])


def spread(name: str, value: jax.Array, /) -> dict[str, jax.Array]:
    """Returns mean, smallest and largest of an array under `name`_mean and so on."""
    value = value.astype(jnp.float32)
    return {
        f"{name}_mean": jnp.mean(value),
        f"{name}_min": jnp.min(value),
        f"{name}_max": jnp.max(value),
    }
