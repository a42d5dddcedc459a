"""How far apart two results are, and whether two are equal in every bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def largest_relative_difference(found: Any, wanted: Any, /) -> float:
    """Returns the largest |found - wanted| of a tree of arrays, each array's relative
    to its largest |wanted|. Not a number or infinite where something is."""
    differences = jax.tree.map(_relative, found, wanted)
    return float(np.max([float(d) for d in jax.tree.leaves(differences)]))


@jax.jit
def _relative(found: jax.Array, wanted: jax.Array) -> jax.Array:
    wanted = wanted.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wanted))
    difference = jnp.max(jnp.abs(found.astype(jnp.float32) - wanted))
    return difference / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)


def equal_bits(a: Any, b: Any, /) -> bool:
    """Returns whether two trees of finite arrays are the same in every bit."""
    same = jax.tree.map(_same, a, b)
    return all(bool(leaf) for leaf in jax.tree.leaves(same))


@jax.jit
def _same(a: jax.Array, b: jax.Array) -> jax.Array:
    signs = jnp.signbit(a) == jnp.signbit(b)  # 0 and -0 are equal, their bits are not
    return jnp.all((a == b) & signs)


def all_finite(tree: Any, /) -> bool:
    """Returns whether every number of a tree of arrays is finite."""
    return all(bool(_finite(leaf)) for leaf in jax.tree.leaves(tree))


@jax.jit
def _finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))
