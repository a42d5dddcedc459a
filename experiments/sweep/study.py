"""A study: a grid whose cells end in numbers, with the provenance of each of them."""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.kernel_speed.devices import Platform, find_device
from experiments.kernel_speed.provenance import provenance
from swa_jax.configuration import to_dict

from .grid import Sweep, cell_name
from .table import Table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class CellTask:
    """What a cell's process does; of functions that it can import.

    Attributes:
        study: name of the study, that of its package in `experiments`.
        outcome: (size, cell) -> what the cell came to, a dataclass.
        text: (size, cells) -> fingerprint of the text that these cells read, None
            where they read none.
    """

    study: str
    outcome: Callable[[Any, Any], Any]
    text: Callable[[Any, Sequence[Any]], str | None]


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment that one command runs: a grid, what a cell does, and the report.

    Attributes:
        task: what the process of a cell does.
        cells: the cells of a size, in the order in which they are begun.
        table: where the outcomes are kept.
        write: writes the pages and figures of a table, and returns their paths; raises
            ValueError for a table without a finished cell.
        results: folder of the committed numbers.
    """

    task: CellTask
    cells: Callable[[Any], Sequence[Any]]
    table: type[Table]
    write: Callable[[Any], list[Path]]
    results: Path

    @property
    def name(self) -> str:
        """Of the study, for messages."""
        return self.task.study

    def sweep(self, size: Any, arguments: Sequence[str], /) -> Sweep:
        """The sweep of a size, for a command with these arguments."""
        run = functools.partial(
            run_cell, task=self.task, size=size, arguments=tuple(arguments)
        )
        cells = {name_of(cell): cell for cell in self.cells(size)}
        chosen = self.table.chosen
        shared = {name: x for name, x in to_dict(size).items() if name not in chosen}
        return Sweep(self.name, run, cells, shared)


def name_of(cell: Any, /) -> str:
    """The name of a cell."""
    return cell_name(dataclasses.asdict(cell))


def platform_of(size: Any, /) -> Platform:
    """Where the cells of a size run."""
    return "gpu" if size.name.startswith("gpu") else "cpu"


def run_cell(
    cell: Any, _folder: Path, /, *, task: CellTask, size: Any, arguments: Sequence[str]
) -> dict[str, Any]:
    """What a cell came to, and where: {"run": ..., "outcome": ...}."""
    with jax.default_device(find_device(platform_of(size))):
        outcome = task.outcome(size, cell)
    run = origin(task, size, [cell], arguments)
    return {"run": run, "outcome": dataclasses.asdict(outcome)}


def origin(
    task: CellTask, size: Any, cells: Sequence[Any], arguments: Sequence[str], /
) -> dict[str, Any]:
    """What a reader needs to judge the cells' numbers and to make them again."""
    device = find_device(platform_of(size))
    found = provenance(
        device_kind=device.device_kind, arguments=arguments, seed=0, packages=PACKAGES
    )
    command = ["python", "-m", f"experiments.{task.study}", *arguments]
    return found | {"command": shlex.join(command), "text": task.text(size, cells)}
