"""The tile of each kernel of the matrix memory, and where a sequence is split.

`tiles.json` holds them by kind of device, key width and size of the dtype. Rows of no
device are defaults, chosen by compiling (no spills, see `pallas_kernels.inspect`);
`pallas_kernels.tune` measures and writes those of a device.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.tile_table import WIDTHS, TileTable

__all__ = [
    "TABLE",
    "TILE_TABLE",
    "WIDTHS",
    "Key",
    "Tile",
    "Tiles",
    "read_table",
    "tiles_for",
    "write_table",
]

TABLE = Path(__file__).with_name("tiles.json")


class Tile(NamedTuple):
    """Columns of the keys and of the values per program, warps, pipeline stages.

    Only the kernel of the states divides the columns of the keys; the others have
    them all.
    """

    keys: int
    values: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the kernels of one call, and the tokens of a chunk.

    The memory stays on chip from the first chunk to the last where heads, rows of the
    batch and blocks of values make `programs` programs; else the sequence is split,
    into as many spans as make so many (reading states that were written to memory).
    """

    chunk: int  # tokens, forward
    programs: int
    read: Tile
    gradient_chunk: int  # tokens, backward
    dq: Tile
    dkv: Tile
    states: Tile


class Key(NamedTuple):
    """What a row of the table is for; `device_kind` None serves every device."""

    device_kind: str | None
    width: int  # of a key, rounded up to a power of two
    bytes: int  # of a number: 2 or 4
    precise: bool  # float32 products in full: without tensor cores, in smaller tiles


TILE_TABLE = TileTable(TABLE, Key, Tiles)
read_table, write_table = TILE_TABLE.read, TILE_TABLE.write


def tiles_for(
    *,
    width: int,
    dtype: jax.typing.DTypeLike,
    precise: bool = False,
    device_kind: str | None,
) -> Tiles:
    """Returns the tiles of the device, or the defaults."""
    size = jnp.dtype(dtype).itemsize
    return TILE_TABLE.lookup(Key(device_kind, width, size, precise))
