"""Rows of a batch over several devices: each reads its own, and none waits."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swa_jax.models.language_model import Model

AXES = ("data", "fsdp")  # of a mesh: those over which rows lie


def mesh_of_rows(params: Any, rows: int, /) -> Mesh | None:
    """Returns the mesh of the parameters, if its devices can share the rows evenly.

    None: the rows stay together.
    """
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return None
        mesh = sharding.mesh
        if not isinstance(mesh, Mesh) or not set(AXES) <= set(mesh.axis_names):
            return None
        shares = mesh.shape["data"] * mesh.shape["fsdp"]
        return mesh if shares > 1 and rows % shares == 0 else None
    return None


def rows_spec(axis: int = 0, /) -> PartitionSpec:
    """Returns how an array lies whose rows are along an axis."""
    return PartitionSpec(*[None] * axis, AXES)


def state_specs(model: Model, /) -> Any:
    """Returns how a state lies whose rows are dealt out: a PartitionSpec a leaf.

    The rows are along the axis that grows with the batch; what has none is everywhere.
    """
    one, two = (
        jax.eval_shape(lambda rows=rows: model.init_state(rows, window=1, context=0))
        for rows in (1, 2)
    )

    def spec(one: Any, two: Any) -> PartitionSpec:
        pairs = enumerate(zip(one.shape, two.shape, strict=True))
        axes = [axis for axis, (first, second) in pairs if first != second]
        return rows_spec(axes[0]) if axes else PartitionSpec()

    return jax.tree.map(spec, one, two)


def on_own_rows(
    function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any, /
) -> Callable[..., Any]:
    """Returns the function of every device's own rows; None: of all rows at once."""
    if mesh is None:
        return function
    # Rows have nothing to say to each other, so nothing is there to be checked.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
