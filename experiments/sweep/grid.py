"""A grid as data: cells by name, and the one function that runs each of them."""

import dataclasses
import difflib
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swa_jax.configuration import shown

LONGEST_NAME = 200  # characters; the name is that of a folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+%-]*")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of cells, which one function runs in processes of their own.

    Attributes:
        name: of the grid, for messages.
        run: (cell, folder of the cell) -> an object that JSON holds. A function that
            another process can import, or a partial of one. Run again in the same
            folder after an interruption, it may go on with what it left there.
        cells: by name, in the order in which they are begun; each can be pickled, and
            is a dataclass or what JSON holds.
        shared: what all cells have alike, as JSON holds it. A folder with cells of
            another such configuration is refused.
    """

    name: str
    run: Callable[[Any, Path], dict[str, Any]]
    cells: Mapping[str, Any]
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cells:
            raise ValueError(f"{self.name}: wanted at least one cell, got none")
        for name in self.cells:
            if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
                raise ValueError(
                    f"{self.name}: the name of a cell wants letters, digits and "
                    f"._=,+%- alone, at most {LONGEST_NAME}; got {shown(name)}"
                )
        try:
            module = pickle.loads(pickle.dumps(self.run))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self.name}: wanted a function that another process can import, got "
                f"{self.run!r} ({error}); move it to the top of a module"
            ) from None
        if getattr(module, "func", module).__module__ == "__main__":
            raise ValueError(
                f"{self.name}: {self.run!r} is of the program itself, which another "
                "process does not import; move it to a module"
            )

    def chosen(self, names: Sequence[str], /) -> list[str]:
        """The names, or those of all cells where none is given.

        Raises ValueError for a name that no cell has.
        """
        for name in names:
            if name not in self.cells:
                near = difflib.get_close_matches(name[:80], self.cells, n=2, cutoff=0.4)
                hint = f"the nearest are {'; '.join(near)}" if near else "see --dry-run"
                raise ValueError(
                    f"--retry: {self.name} has no cell {shown(name)}; {hint}"
                )
        return list(dict.fromkeys(names)) or list(self.cells)


def cell_name(axes: Mapping[str, Any], /) -> str:
    """The name of a cell by its place in the grid, such as "task=copy,seed=1".

    Elements of a tuple are joined by "_"; what no folder's name holds is spelled as in
    a URL.
    """
    return ",".join(f"{name}={_text(value)}" for name, value in axes.items())


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "_".join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return quote(str(value), safe="+._-")
