"""The tile of each kernel of the gated delta rule.

Chosen by compiling (no spills, see `pallas_kernels.inspect`), not by measuring. Where a
kernel is one of the matrix memory, its tile is that table's default.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory import tiles as matrix_memory
from pallas_kernels.matrix_memory.tiles import Tiles as MatrixMemoryTiles


class Tile(NamedTuple):
    """Columns of the values per program, or per round of its loop, warps, stages."""

    values: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the kernels of one call, and the tokens of a chunk."""

    chunk: int
    inverse: Tile  # which has no columns
    product: Tile
    walk: Tile
    keys: Tile
    shared: MatrixMemoryTiles  # of the kernels read, dq and dkv


def tiles_for(*, width: int, dtype: jax.typing.DTypeLike, precise: bool) -> Tiles:
    """Returns the tiles of a call whose keys are `width` wide."""
    options = {"width": width, "dtype": dtype, "precise": precise}
    shared = matrix_memory.tiles_for(**options, device_kind=None)
    if jnp.dtype(dtype).itemsize == 4:
        stages = 1 if precise else 2
        tile = Tile(values=32, warps=4, stages=stages)
        return Tiles(
            16,
            inverse=tile,
            product=tile,
            walk=Tile(values=16, warps=8 if precise else 4, stages=stages),
            keys=Tile(values=16, warps=4, stages=1),
            shared=shared,
        )
    return Tiles(
        64,
        inverse=Tile(values=64, warps=4, stages=1),
        product=Tile(values=64, warps=4, stages=1),
        walk=Tile(values=32, warps=4, stages=2),
        keys=Tile(values=64, warps=4 if width < 128 else 8, stages=2),
        shared=shared,
    )
