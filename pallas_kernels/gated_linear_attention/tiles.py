"""The tile of each kernel of gated linear attention.

Chosen by compiling (no spills, see `pallas_kernels.inspect`), not by measuring.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory.blocks import Sizes


class Tile(NamedTuple):
    """Columns of the keys and of the values per program, or per round of its loop;
    warps, pipeline stages."""

    keys: int
    values: int
    warps: int
    stages: int

    def within(self, sizes: Sizes) -> "Tile":
        """Returns the tile, no wider than a head."""
        return self._replace(
            keys=min(self.keys, sizes.key_width),
            values=min(self.values, sizes.value_width),
        )


class Tiles(NamedTuple):
    """The tiles of the kernels of one call, and the tokens of a chunk."""

    chunk: int
    scores: Tile
    states: Tile
    read: Tile
    dscores: Tile
    gradients: Tile


def tiles_for(sizes: Sizes, dtype: jax.typing.DTypeLike, /) -> Tiles:
    """Returns the tiles of a call."""
    if jnp.dtype(dtype).itemsize == 4:  # no tensor cores: all of a product in registers
        tile = Tile(keys=32, values=32, warps=4, stages=1)
        return Tiles(64, tile, tile, tile, tile, tile)
    tile = Tile(keys=64, values=64, warps=4, stages=2)
    scores = tile._replace(keys=32)
    states = tile if sizes.key_width > 16 else tile._replace(stages=1)
    return Tiles(64, scores, states, tile, tile, tile)
