"""Segment boundaries: where the memory is emptied."""

import jax
import jax.numpy as jnp


def resets(
    segment_ids_BT: jax.Array | None, before_B: jax.Array, /
) -> tuple[jax.Array | None, jax.Array]:
    """Returns where the id differs from the token's before, and the last token's id.

    `before_B` is the id before the first token. Without ids nothing is reset (None),
    and the last id is still `before_B`.
    """
    if segment_ids_BT is None:
        return None, before_B
    ids_BT = segment_ids_BT.astype(jnp.int32)
    before_BT = jnp.concatenate([before_B[:, None], ids_BT[:, :-1]], axis=1)
    return ids_BT != before_BT, ids_BT[:, -1]
