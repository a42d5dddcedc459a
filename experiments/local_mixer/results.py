"""The numbers of a grid: lines of JSON, one for each run and each finished cell."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.sweep.lines import (
    append_lines,
    check_same_configuration,
    check_same_origin,
    read_lines,
    write_lines,
)
from swa_jax.configuration import from_dict, to_dict

from .config import Cell, Size

# What all cells of one table must share.
SHARED = ("device", "jax", "jaxlib", "numpy", "text")
# What a run may choose anew: its part of the grid.
CHOSEN = ("locals", "mixers", "tasks", "seeds")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trained cell came to.

    Attributes:
        loss: nats per answer (per token of code), on held-out rows; None: diverged.
        accuracy: share of right answers there.
        bits_per_byte: of held-out code; None for the other tasks.
        by_distance: answers and right ones, by the lower edge of the octave of
            distances (tokens).
        curve: training loss, means over equal parts of the steps.
        seconds: of training and test; cells may run beside each other.
    """

    loss: float | None
    accuracy: float
    bits_per_byte: float | None
    by_distance: dict[str, list[int]]
    curve: list[float | None]
    seconds: float


class Results:
    """The finished cells of a size, in a file to which a run adds."""

    def __init__(self, path: Path, size: Size, /):
        """Reads what the file has; a last line that was cut off does not count.

        Raises ValueError for a file of another configuration.
        """
        self.path = path
        self.size = size
        self.runs: list[dict[str, Any]] = []
        self.outcomes: dict[Cell, Outcome] = {}
        for line in read_lines(path):
            if "run" in line:
                self.runs.append(line["run"])
                old = from_dict(Size, line["run"]["size"])
                check_same_configuration(path, old, size, chosen=CHOSEN)
            else:
                cell = Cell(**line["cell"])
                self.outcomes[cell] = Outcome(**line["outcome"])

    def check(self, provenance: dict[str, Any], /) -> None:
        """Raises ValueError where lines of such a run cannot stand in one table with
        those there."""
        check_same_origin(self.path, self.runs, provenance, names=SHARED)

    def begin(self, provenance: dict[str, Any], /) -> None:
        """Returns nothing; notes that the lines to come are of this run.

        Raises ValueError as `check`.
        """
        self.check(provenance)
        self.runs.append(provenance | {"size": to_dict(self.size)})
        # Written anew, because the last line may have been cut off.
        lines = [{"run": run} for run in self.runs]
        lines += [_cell_line(*item) for item in self.outcomes.items()]
        write_lines(self.path, lines)

    def add(self, cell: Cell, outcome: Outcome, /) -> None:
        """Returns nothing; the outcome is in the file."""
        self.outcomes[cell] = outcome
        append_lines(self.path, [_cell_line(cell, outcome)])

    def missing(self) -> list[Cell]:
        """The cells that are not finished, in the order of the grid."""
        return [cell for cell in self.size.cells if cell not in self.outcomes]


def _cell_line(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    return {"cell": dataclasses.asdict(cell), "outcome": dataclasses.asdict(outcome)}
