"""The tile of each kernel: how many rows and keys a program works on, and with what.

`tiles.json` holds them by kind of device, head width, size of the dtype and class of
window. Rows of no device are defaults, chosen by compiling (no spills, see
`pallas_kernels.inspect`); `pallas_kernels.tune` measures and writes those of a device.
"""

import functools
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

TABLE = Path(__file__).with_name("tiles.json")
SHORT = 256  # tokens: the largest window of the class "short"
WIDTHS = (16, 32, 64, 128, 256)

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


class Key(NamedTuple):
    """What a row of the table is for; `device_kind` None serves every device."""

    device_kind: str | None
    width: int  # of a head, rounded up to a power of two
    bytes: int  # of a number: 2 or 4
    window: WindowClass
    precise: bool  # float32 products in full: without tensor cores, in smaller tiles


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
    table = read_table()
    size = jnp.dtype(dtype).itemsize
    width = min(other for other in WIDTHS if other >= width)
    key = Key(device_kind, width, size, window, precise and size == 4)
    return table.get(key) or table[key._replace(device_kind=None)]


@functools.cache
def read_table(path: Path = TABLE, /) -> dict[Key, Tiles]:
    """Returns the table of the file.

    Raises:
      ValueError: a row that is not of the form that `write_table` writes.
    """
    table = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        key, tiles = _parse(row, path)
        table[key] = tiles
    return table


def _parse(row: dict[str, Any], path: Path) -> tuple[Key, Tiles]:
    """Returns one row of the table; raises ValueError on a malformed one."""
    try:
        key = Key(*(row[field] for field in Key._fields))
        tiles = Tiles(*(Tile(*row[kernel]) for kernel in Tiles._fields))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} has a row without {error}: {row}") from None
    numbers = [number for tile in tiles for number in tile]
    whole = all(isinstance(number, int) and number > 0 for number in numbers)
    if not whole or key.window not in get_args(WindowClass) or key.width not in WIDTHS:
        raise ValueError(f"{path.name} has a row that is no tile table's: {row}")
    return key, tiles


def write_table(table: dict[Key, Tiles], path: Path = TABLE, /) -> None:
    """Returns nothing; writes the table, one row a line, the defaults first."""
    order = sorted(table, key=lambda key: (key.device_kind or "", *key[1:]))
    rows = [json.dumps({**key._asdict(), **table[key]._asdict()}) for key in order]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
    read_table.cache_clear()
