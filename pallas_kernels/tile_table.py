"""A table of tiles in a JSON file: one row a line, by kind of device and of call.

Each operation that has kernels has one. Its `Key`, a NamedTuple, says what a row is
for: at least `device_kind` (None serves every device), `width` (one of WIDTHS), `bytes`
(of a number: 2 or 4) and `precise` (float32 products in full). Its `Tiles` are what the
row says: the tile of each kernel, or a whole number.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

WIDTHS = (16, 32, 64, 128, 256)  # columns of a head's keys

K = TypeVar("K", bound=tuple)
V = TypeVar("V", bound=tuple)


@dataclasses.dataclass(frozen=True)
class TileTable(Generic[K, V]):
    """The table of one operation; `serves` says which keys are among its own."""

    path: Path
    key: type[K]
    tiles: type[V]
    serves: Callable[[Any], bool] = lambda key: True

    def lookup(self, key: Any, /) -> V:
        """Returns the tiles of the device, or the defaults.

        Of any width up to the widest; for 2-byte numbers `precise` says nothing.
        """
        width = min(other for other in WIDTHS if other >= key.width)
        key = key._replace(width=width, precise=key.precise and key.bytes == 4)
        rows = _rows(self)
        return rows.get(key) or rows[key._replace(device_kind=None)]

    def read(self, path: Path | None = None, /) -> dict[K, V]:
        """Returns the rows of a file as it is now; None is the operation's own.

        Raises:
          ValueError: a row that is not of the form that `write` writes.
        """
        path = path or self.path
        rows = json.loads(path.read_text(encoding="utf-8"))
        return dict(self._parse(row, path) for row in rows)

    def _parse(self, row: dict[str, Any], path: Path) -> tuple[K, V]:
        """Returns one row of a file; raises ValueError on a malformed one."""
        kinds = get_type_hints(self.tiles)
        try:
            key: Any = self.key(*(row[field] for field in get_type_hints(self.key)))
            values = [
                row[field] if kind is int else kind(*row[field])
                for field, kind in kinds.items()
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name} has a row without {error}: {row}") from None
        numbers = [n for x in values for n in (x if isinstance(x, tuple) else (x,))]
        whole = all(type(number) is int and number > 0 for number in numbers)
        if not whole or key.width not in WIDTHS or not self.serves(key):
            raise ValueError(f"{path.name} has a row that is no tile table's: {row}")
        return key, self.tiles(*values)

    def write(self, table: dict[K, V], path: Path | None = None, /) -> None:
        """Returns nothing; writes the rows, one a line, the defaults first."""
        rows: list[Any] = list(table.items())
        rows.sort(key=lambda row: (row[0].device_kind or "", *row[0][1:]))
        lines = [json.dumps({**key._asdict(), **x._asdict()}) for key, x in rows]
        replace_text(path or self.path, "[\n" + ",\n".join(lines) + "\n]\n")
        _rows.cache_clear()


@functools.cache
def _rows(table: TileTable) -> dict[Any, Any]:
    """Returns the rows of the operation's own file, which is read once."""
    return table.read()


def replace_text(path: Path, text: str, /) -> None:
    """Returns nothing; whoever reads the file finds the old text or the new, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
