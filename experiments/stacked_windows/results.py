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

from .config import Cell, Design, Size

# What all cells of one table must share.
SHARED = ("device", "jax", "jaxlib", "numpy", "text")
# What a run may choose anew: its part of the grid.
CHOSEN = ("random", "trained", "seeds")


@dataclasses.dataclass(frozen=True)
class Stack:
    """The measured influence on a row's last token, and what the formulas say of it.

    Attributes:
        distances: some of the distances (tokens), 0 first.
        tail: share of the influence from each of them or beyond.
        mean: distance (tokens) of the influence.
        spread: standard deviation (tokens) of that distance.
        horizon: smallest distance (tokens) with a tail below the size's tolerance.
        horizons: the same by each formula.
        errors: of each formula, mean of |log10(formula / measured)| over tails.
        beyond_reach: share of the influence from beyond what the windows reach.
    """

    distances: tuple[int, ...]
    tail: tuple[float, ...]
    mean: float
    spread: float
    horizon: int
    horizons: dict[str, int]
    errors: dict[str, float]
    beyond_reach: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        stack: of the whole model.
        branches: of its branches without residual paths.
        alpha_jacobian: of each layer with a window, by its Jacobian.
        alpha_stream: of the same, by the lengths of stream and branch.
        gains: of the same, hop over own path; None: nothing is left of the own path.
        loss: training loss (nats/byte) of the last tenth of the steps; None: untrained.
        steps: of training.
        seconds: of training and measuring; cells may run beside each other.
    """

    stack: Stack
    branches: Stack
    alpha_jacobian: tuple[float, ...]
    alpha_stream: tuple[float, ...]
    gains: tuple[float | None, ...]
    loss: float | None
    steps: int
    seconds: float


def outcome_of(values: dict[str, Any], /) -> Outcome:
    """The outcome that JSON has kept."""
    fields = _with_tuples(values)
    for name in ("stack", "branches"):
        fields[name] = Stack(**_with_tuples(values[name]))
    return Outcome(**fields)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {n: tuple(x) if isinstance(x, list) else x for n, x in values.items()}


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
                self.outcomes[Cell(**line["cell"])] = outcome_of(line["outcome"])

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

    def of(self, state: str, design: Design, /) -> list[Outcome]:
        """The outcomes of a design in a state, one for each finished seed."""
        return [
            outcome
            for cell, outcome in self.outcomes.items()
            if (cell.state, cell.design) == (state, design)
        ]


def _cell_line(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    return {"cell": dataclasses.asdict(cell), "outcome": dataclasses.asdict(outcome)}
