"""What the tuner asks of an operation; the files of their names have the answers."""

from collections.abc import Mapping
from typing import Any, Protocol

from pallas_kernels.tile_table import TileTable
from pallas_kernels.tune.problem import Problem
from pallas_kernels.tune.space import Limits, Space


class Operation(Protocol):
    """An operation whose kernels have a table of tiles.

    `kernels` are searched in this order, each with what was chosen for those before it;
    without a choice for the first there is none for the others. A search chooses a
    candidate, a part of a row. `before`: kernel -> the one whose results it reads.
    """

    name: str
    table: TileTable
    kernels: tuple[str, ...]
    before: Mapping[str, str]
    widths: tuple[int, ...]  # of the rows, the most useful first

    def size(self, tokens: int, /) -> Any:
        """Returns the size of a problem of so many tokens, a NamedTuple."""
        ...

    def problem(self, key: Any, size: Any, /) -> Problem:
        """Returns the problem that candidates are raced on."""
        ...

    def confirmation(self, key: Any, size: Any, /) -> Problem:
        """Returns a small problem with all that changes a kernel, and ragged ends."""
        ...

    def space(self, kernel: str, key: Any, tiles: Any, limits: Limits, /) -> Space:
        """Returns what to choose from for a kernel; the default is the part of
        `tiles`."""
        ...

    def candidate(self, kernel: str, tiles: Any, /) -> Any:
        """Returns the part of a row that the search of a kernel chooses."""
        ...

    def with_candidate(self, kernel: str, tiles: Any, candidate: Any, /) -> Any:
        """Returns the row with that part."""
        ...
