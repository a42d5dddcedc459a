"""The rows of a cell on all devices of this process, batch by batch."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from swa_jax.models.language_model import Model
from swa_jax.training.config import MeshConfig
from swa_jax.training.sharding import batch_sharding, make_mesh, on_mesh

TOKENS_AT_ONCE = 2**15  # of one device

Rows = Mapping[str, NDArray[Any]]


@functools.cache
def local_mesh() -> Mesh:
    """Returns the mesh of this process's devices, each with rows of its own."""
    devices = jax.local_devices()
    return make_mesh(MeshConfig(data=len(devices)), devices=devices)


@functools.lru_cache(maxsize=8)
def over_devices(model: Model, /) -> Model:
    """Returns the model for rows that lie on all devices, the same one every time."""
    mesh = local_mesh()
    # Rows are whole, so that no token of a window crosses from device to device.
    return on_mesh(model, mesh, largest_window=1) if mesh.size > 1 else model


def everywhere(params: Any, /) -> Any:
    """Returns the parameters, whole on every device; free where they are already."""
    return jax.device_put(params, NamedSharding(local_mesh(), PartitionSpec()))


def row_batches(rows: Rows, /) -> Iterator[dict[str, jax.Array]]:
    """Yields all rows (R, T, ...) in batches of one size, dealt out to the devices.

    A batch has a multiple of the devices' number of rows: what is missing is rows of
    zeros, whose weights or segments say that they do not count.
    """
    mesh = local_mesh()
    total, length = rows["tokens"].shape
    per_device = min(max(1, TOKENS_AT_ONCE // length), -(-total // mesh.size))
    size = per_device * mesh.size
    for start in range(0, total, size):
        batch = {name: array[start : start + size] for name, array in rows.items()}
        missing = size - len(batch["tokens"])
        if missing:
            batch = {
                name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
                for name, array in batch.items()
            }
        yield jax.device_put(batch, batch_sharding(mesh))
