"""The tile of each kernel: how many rows and keys a program works on, and with what.

`tiles.json` holds them by kind of device, head width, size of the dtype and class of
window. Rows of no device are defaults, chosen by compiling (no spills, see
`pallas_kernels.inspect`); `pallas_kernels.tune` measures and writes those of a device.
"""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pallas_kernels.tile_table import WIDTHS, TileTable

__all__ = [
    "SHORT",
    "TABLE",
    "TILE_TABLE",
    "WIDTHS",
    "Key",
    "Tile",
    "Tiles",
    "read_table",
    "tiles_for",
    "window_class",
    "write_table",
]

TABLE = Path(__file__).with_name("tiles.json")
WIDE = 128  # columns of a head
SHORT = 256  # tokens: the largest window of the class "short"

WindowClass = Literal["short", "long"]


class Tile(NamedTuple):
    """Query rows and keys per block, warps per program, stages of the pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the kernels of one call."""

    forward: Tile
    dq: Tile
    dkv: Tile

    def with_room(self, width: int, /) -> "Tiles":
        """Returns tiles whose dq prepares queries, too: from 128 columns on, what turns
        and norms them takes the registers of half the rows."""
        if width < WIDE:
            return self
        rows = min(self.dq.rows, 64)
        return self._replace(dq=self.dq._replace(rows=rows, warps=8))


class Key(NamedTuple):
    """What a row of the table is for; `device_kind` None serves every device."""

    device_kind: str | None
    width: int  # of a head, rounded up to a power of two
    bytes: int  # of a number: 2 or 4
    window: WindowClass
    precise: bool  # float32 products in full: without tensor cores, in smaller tiles


TILE_TABLE = TileTable(
    TABLE, Key, Tiles, lambda key: key.window in get_args(WindowClass)
)
read_table, write_table = TILE_TABLE.read, TILE_TABLE.write


def window_class(window: int | jax.Array | None, /) -> WindowClass:
    """Returns "short" for a window known now that is short, else "long"."""
    if window is None or isinstance(window, Tracer):
        return "long"
    return "short" if int(window) <= SHORT else "long"


def tiles_for(
    *,
    width: int,
    dtype: jax.typing.DTypeLike,
    window: WindowClass,
    precise: bool = False,
    device_kind: str | None,
) -> Tiles:
    """Returns the tiles of the device, or the defaults."""
    size = jnp.dtype(dtype).itemsize
    return TILE_TABLE.lookup(Key(device_kind, width, size, window, precise))
