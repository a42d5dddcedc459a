"""What stands before each shard of a sequence that is cut over an axis of a mesh.

For functions inside jax.shard_map. Shard 0 holds the first tokens, shard 1 the next.
What travels here are states and single tokens: bytes that do not grow with T.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def shards(axis: str, /) -> int:
    """Returns the number of shards along the axis.

    Raises:
      ValueError: no jax.shard_map around the call has the axis.
    """
    try:
        return int(jax.lax.axis_size(axis))
    except NameError:
        raise ValueError(
            "an operation on shards of a sequence wants axis= the name of a mesh axis "
            f"of the jax.shard_map that it is called in; got {axis=}."
        ) from None


def from_left(tree: Tree, /, *, axis: str, hops: int = 1, first: int = 0) -> Tree:
    """Returns the tree of the shard that stands `hops` to the left; zeros where that is
    none, or stands left of shard `first`."""
    sends = [(shard, shard + hops) for shard in range(first, shards(axis) - hops)]
    if not sends:
        return jax.tree.map(jnp.zeros_like, tree)
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, sends), tree)


def exclusive_scan(
    combine: Callable[[Tree, Tree], Tree],
    element: Tree,
    identity: Tree,
    /,
    *,
    axis: str,
) -> Tree:
    """Returns the elements of all shards to the left, combined in their order; the
    identity on shard 0.

    `combine(left, right)` is associative and meets zeros, whose result is dropped,
    where a shard has fewer neighbours. For n shards every one sends 1 + ceil(log2(n -
    1)) trees at most (Hillis & Steele 1986), n being any number.
    """
    shard = jax.lax.axis_index(axis)
    prefix = choose(shard == 0, identity, from_left(element, axis=axis))
    hops = 1  # neighbours whose elements a prefix has, unless there are fewer
    while hops < shards(axis) - 1:
        left = from_left(prefix, axis=axis, hops=hops, first=1)
        prefix = choose(shard > hops, combine(left, prefix), prefix)
        hops *= 2
    return prefix


def segment_before(
    segment_ids_BT: jax.Array | None, start_B: jax.Array, /, *, axis: str
) -> jax.Array:
    """Returns the id of the token before each shard's first, `start_B` on shard 0; on
    every shard where there are no ids."""
    if segment_ids_BT is None:
        return start_B
    last_B = from_left(segment_ids_BT[:, -1].astype(jnp.int32), axis=axis)
    return choose(jax.lax.axis_index(axis) == 0, start_B.astype(jnp.int32), last_B)


def of_last_shard(tree: Tree, /, *, axis: str) -> Tree:
    """Returns the tree of the last shard, which is then the same on all of them."""
    last = jax.lax.axis_index(axis) == shards(axis) - 1

    def shared(x):
        # A sum of one number and zeros is exact. XLA's CPU compiler fails on sums of
        # bfloat16 across devices.
        half = x.dtype.itemsize < 4
        wide = x.astype(jnp.float32) if half else x
        only = jnp.where(last, wide, jnp.zeros_like(wide))
        return jax.lax.psum(only, axis).astype(x.dtype)

    return jax.tree.map(shared, tree)


def choose(condition: jax.Array, chosen: Tree, other: Tree, /) -> Tree:
    """Returns one of two trees, by a scalar condition."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)
