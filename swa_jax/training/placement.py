"""Rows of a batch, from the process that reads them to the devices that want them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from swa_jax.training.sharding import batch_sharding


def process_share(mesh: Mesh, rows: NamedSharding, /) -> tuple[int, int]:
    """Which of how many equal shares of every batch this process's devices hold.

    `rows`: how rows lie on the devices of the mesh. Processes whose devices hold the
    same rows have the same share.

    Raises ValueError where the mesh leaves devices out, or where what the devices of a
    process hold is no such share.
    """
    if jax.process_count() == 1:
        return 0, 1
    if mesh.size != jax.device_count():
        raise ValueError(
            f"several processes train on all of their {jax.device_count()} devices, "
            f"and the mesh has {mesh.size}; leave mesh.data out"
        )
    axes = rows.spec[0]
    blocks = math.prod(mesh.shape[axis] for axis in axes)
    over = NamedSharding(mesh, P(axes))
    indices = over.addressable_devices_indices_map((blocks,)).values()
    own = {block for index in indices if index for block in range(blocks)[index[0]]}
    return share_of(own, blocks)


def share_of(own: set[int], blocks: int, /) -> tuple[int, int]:
    """Which of how many equal shares some of the blocks are; ValueError: none is."""
    first, size = min(own), len(own)
    if own != set(range(first, first + size)) or blocks % size or first % size:
        raise ValueError(
            "the rows that the devices of a process hold must be neighbours and as "
            f"many as every other process's, got blocks {sorted(own)} of {blocks}; "
            "let mesh.tensor and the number of devices of a process divide each other"
        )
    return first // size, blocks // size


def placing(
    mesh: Mesh, names: Sequence[str], /
) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """What puts some arrays of a process's share of a batch on a mesh's devices."""
    sharding = batch_sharding(mesh)
    share = process_share(mesh, sharding)
    return lambda batch: place_rows(
        {name: batch[name] for name in names}, sharding, share=share
    )


def place_rows(
    batch: Mapping[str, np.ndarray],
    sharding: NamedSharding,
    /,
    *,
    share: tuple[int, int] = (0, 1),
) -> dict[str, jax.Array]:
    """A batch on the devices; each process gives its share of the rows."""
    index, count = share
    if count == 1 and jax.process_count() == 1:
        return {name: jax.device_put(rows, sharding) for name, rows in batch.items()}

    def placed(rows: np.ndarray) -> jax.Array:
        shape, first = (len(rows) * count, *rows.shape[1:]), index * len(rows)

        def part(slices: Any) -> np.ndarray:
            begin, end, _ = slices[0].indices(shape[0])
            return rows[(slice(begin - first, end - first), *slices[1:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: placed(rows) for name, rows in batch.items()}
