"""The numbers of a study: lines of JSON, one for each run and each finished cell."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from swa_jax.configuration import from_dict, to_dict

from .lines import (
    append_lines,
    check_same_configuration,
    check_same_origin,
    read_lines,
    write_lines,
)

# What all cells of one table must share, beside the size.
SHARED = ("device", "jax", "jaxlib", "numpy", "text")
# What the lines of one command may differ in.
OF_THE_MOMENT = ("date", "load_average_1_minute")

Size = TypeVar("Size")
Cell = TypeVar("Cell")
Outcome = TypeVar("Outcome")


class Table(Generic[Size, Cell, Outcome]):
    """The finished cells of a size, in a file to which a command adds.

    A study's own table names its types, and the fields of the size that a command may
    choose anew: its part of the grid. Sizes, cells and outcomes are dataclasses.
    """

    size_type: ClassVar[type]
    cell_type: ClassVar[type]
    outcome_type: ClassVar[type]
    chosen: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path, size: Size, /):
        """Reads what the file has; a last line that was cut off does not count.

        Raises ValueError for a file of another configuration.
        """
        self.path, self.size = path, size
        self.runs: list[dict[str, Any]] = []
        self.outcomes: dict[Cell, Outcome] = {}
        for line in read_lines(path):
            if "run" in line:
                self.runs.append(line["run"])
                old = from_dict(self.size_type, line["run"]["size"])
                check_same_configuration(path, old, size, chosen=self.chosen)
            else:
                cell = self.cell_type(**line["cell"])
                self.outcomes[cell] = self.outcome_of(line["outcome"])

    @classmethod
    def outcome_of(cls, values: Mapping[str, Any], /) -> Outcome:
        """The outcome that JSON has kept."""
        return cls.outcome_type(**values)

    def check(self, run: Mapping[str, Any], /) -> None:
        """Raises ValueError where cells of such a run cannot stand in one table with
        those there."""
        check_same_origin(self.path, self.runs, run, names=SHARED)

    def add(self, cell: Cell, outcome: Outcome, run: Mapping[str, Any], /) -> None:
        """Returns nothing; the outcome is in the file, behind the run that it is of.

        Raises ValueError as `check`.
        """
        self.check(run)
        known = {**run, "size": to_dict(self.size)}
        self.outcomes[cell] = outcome
        if self.runs and _is_told_by(self.runs[-1], known):
            append_lines(self.path, [_cell_line(cell, outcome)])
            return
        self.runs.append(known)
        # Written anew, because the last line may have been cut off.
        lines = [{"run": each} for each in self.runs]
        lines += [_cell_line(*item) for item in self.outcomes.items()]
        write_lines(self.path, lines)


def _is_told_by(line: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a line says all that is known of a run, but for its moment."""
    known = {n: x for n, x in run.items() if n not in OF_THE_MOMENT and x is not None}
    return all(line.get(name) == x for name, x in known.items())


def _cell_line(cell: Any, outcome: Any) -> dict[str, Any]:
    return {"cell": dataclasses.asdict(cell), "outcome": dataclasses.asdict(outcome)}
