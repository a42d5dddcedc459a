"""The numbers of the experiment: lines of JSON, for each run and each finished cell."""

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

SHARED = ("device", "jax", "jaxlib", "numpy", "text")  # by all cells of one table
OF_THE_MOMENT = ("date", "load_average_1_minute")
CHOSEN = ("arms", "seeds")  # what a command may choose anew: its part of the grid


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trained cell came to.

    Attributes:
        steps: of training.
        curve: means over equal parts of the steps: nats of an answer, nats of a token
            of code, share of right answers.
        needles: of `test_needles`.
        code: of `test_code`.
        training_seconds: with compilation; cells may run beside each other.
        seconds: with the tests.
    """

    steps: int
    curve: list[list[float | None]]
    needles: list[dict[str, Any]]
    code: list[dict[str, Any]]
    training_seconds: float
    seconds: float


class Results:
    """The finished cells of a size, in a file to which a command adds."""

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
                old = from_dict(Size, line["run"]["size"])
                check_same_configuration(path, old, size, chosen=CHOSEN)
            else:
                self.outcomes[Cell(**line["cell"])] = Outcome(**line["outcome"])

    def check(self, provenance: dict[str, Any], /) -> None:
        """Raises ValueError where cells of such a run cannot stand in one table with
        those there."""
        check_same_origin(self.path, self.runs, provenance, names=SHARED)

    def add(self, cell: Cell, outcome: Outcome, run: dict[str, Any], /) -> None:
        """Returns nothing; the outcome is in the file, behind the run that it is of.

        Raises ValueError as `check`.
        """
        self.check(run)
        known = run | {"size": to_dict(self.size)}
        self.outcomes[cell] = outcome
        if not self.runs or _without_moment(self.runs[-1]) != _without_moment(known):
            self.runs.append(known)
            # Written anew, because the last line may have been cut off.
            lines = [{"run": each} for each in self.runs]
            lines += [_cell_line(*item) for item in self.outcomes.items()]
            write_lines(self.path, lines)
        else:
            append_lines(self.path, [_cell_line(cell, outcome)])


def _without_moment(run: dict[str, Any]) -> dict[str, Any]:
    """What a command's cells have alike."""
    return {name: x for name, x in run.items() if name not in OF_THE_MOMENT}


def _cell_line(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    return {"cell": dataclasses.asdict(cell), "outcome": dataclasses.asdict(outcome)}
