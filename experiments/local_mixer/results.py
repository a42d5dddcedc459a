"""The numbers of a grid: lines of JSON, one for each run and each finished cell."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from swa_jax.configuration import differences, from_dict, to_dict

from .config import Cell, Size

# What all cells of one table must share.
SHARED = ("device", "jax", "jaxlib", "numpy", "text")


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
        for line in _lines(path):
            if "run" in line:
                self.runs.append(line["run"])
                _check_same(path, from_dict(Size, line["run"]["size"]), size)
            else:
                cell = Cell(**line["cell"])
                self.outcomes[cell] = Outcome(**line["outcome"])

    def begin(self, provenance: dict[str, Any], /) -> None:
        """Returns nothing; notes that the lines to come are of this run.

        Raises ValueError where they cannot stand in one table with those there.
        """
        for run in self.runs:
            pairs = {name: (run.get(name), provenance.get(name)) for name in SHARED}
            # A run without code has no text.
            other = [n for n, (a, b) in pairs.items() if a != b and None not in (a, b)]
            if other:
                was = ", ".join(f"{name} {run.get(name)}" for name in other)
                raise ValueError(
                    f"{self.path} was made with {was}; this run would differ. Move the "
                    "file away, or choose another --out."
                )
        self.runs.append(provenance | {"size": to_dict(self.size)})
        # Written anew, because the last line may have been cut off.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"run": run} for run in self.runs]
        lines += [_cell_line(*item) for item in self.outcomes.items()]
        self.path.write_text("".join(map(_text, lines)), encoding="utf-8")

    def add(self, cell: Cell, outcome: Outcome, /) -> None:
        """Returns nothing; the outcome is in the file."""
        self.outcomes[cell] = outcome
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text(_cell_line(cell, outcome)))

    def missing(self) -> list[Cell]:
        """The cells that are not finished, in the order of the grid."""
        return [cell for cell in self.size.cells if cell not in self.outcomes]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _check_same(path: Path, old: Size, new: Size) -> None:
    """Returns nothing; which cells are chosen may differ, nothing else may."""
    chosen = {"locals", "mixers", "tasks", "seeds"}
    other = [name for name in differences(old, new) if name not in chosen]
    if other:
        raise ValueError(
            f"{path} was made with another configuration ({', '.join(other)} differ); "
            "move it away, or choose another --out."
        )


def _cell_line(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    return {"cell": dataclasses.asdict(cell), "outcome": dataclasses.asdict(outcome)}


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
