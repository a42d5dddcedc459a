"""The one table of tolerances: the largest error against the float64 reference.

An error is relative to the largest magnitude of the reference array (or a thousandth of
the largest of the whole tree, for arrays that cancel to zero). `float64` is the room
for another order of the same sums; the others are a few units in the last place.
"""

from typing import Any

import chex
import jax
import numpy as np

RELATIVE = {"float64": 1e-11, "float32": 5e-6, "bfloat16": 2e-2, "float16": 3e-3}


def assert_near(found, wanted, /, *, dtype: str) -> None:
    """Returns nothing; each leaf of `found` is within the table's error of `wanted`."""
    chex.assert_trees_all_equal_structs(found, wanted)
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    largest = max(np.max(np.abs(np.float64(w)), initial=0.0) for _, w in leaves)
    for (path, want), have in zip(leaves, jax.tree.leaves(found), strict=True):
        want, have = np.float64(want), np.float64(have)
        assert have.shape == want.shape, f"{path}: {have.shape} for {want.shape}"
        assert np.isfinite(have).all(), f"{path} is not finite"
        error = np.max(np.abs(have - want), initial=0.0)
        magnitude = max(np.max(np.abs(want), initial=0.0), 1e-3 * largest)
        bound = RELATIVE[dtype] * magnitude
        assert error <= bound, f"{path}: error {error:.2e} above {bound:.2e}"


def whole_maps(tree: Any, /) -> Any:
    """Returns the tree with each map's bias as one more row of its kernel: a bias is a
    sum of the same terms, which may cancel."""
    if not isinstance(tree, dict):
        children = isinstance(tree, tuple) and not hasattr(tree, "_fields")
        return tuple(map(whole_maps, tree)) if children else tree
    if tree.keys() == {"kernel", "bias"}:
        return np.concatenate([tree["kernel"], tree["bias"][..., None, :]], axis=-2)
    return {name: whole_maps(child) for name, child in tree.items()}
