"""The numbers of a grid: lines of JSON, one for each run and each cell."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.kernel_speed.gpu.origin import source_digest
from experiments.kernel_speed.provenance import provenance
from experiments.sweep.lines import (
    append_lines,
    check_same_origin,
    read_lines,
    write_lines,
)
from swa_jax.configuration import from_dict, to_dict
from swa_jax.planning.plan import Plan
from swa_jax.planning.report import received_bytes

from .config import Cell

# What all cells of one page must share.
SHARED = ("source", "device", "jax", "jaxlib")
# What a compiled step depends on.
ROOMS = ("layers", "models", "training", "planning")
SOURCES = ("pallas_kernels", *(f"swa_jax/{room}" for room in ROOMS))


@dataclass(frozen=True)
class Row:
    """A compiled cell; bytes are those of each device, in one step."""

    cell: Cell
    mesh: dict[str, int]
    received: dict[str, dict[str, int]]  # bytes by axes and kind of collective
    peak: int  # bytes of memory
    usable: int  # bytes of the card
    step_seconds: float  # estimated
    compile_seconds: float
    unknown_loops: int

    @property
    def total(self) -> int:
        """Bytes received over all axes."""
        return sum(sum(kinds.values()) for kinds in self.received.values())

    def along(self, axis: str, /) -> int:
        """Bytes received along an axis alone."""
        return sum(self.received.get(axis, {}).values())


def row_of(cell: Cell, plan: Plan, /) -> Row:
    """Returns the row of a plan."""
    program = plan.program
    return Row(
        cell,
        program.mesh,
        received_bytes(program.collectives),
        program.memory.total,
        plan.usable,
        plan.estimate.step,
        program.trace_seconds + program.compile_seconds,
        program.unknown_loops,
    )


class Results:
    """The rows of a grid, in a file to which a run adds."""

    def __init__(self, path: Path, /):
        """Reads what the file has; a last line that was cut off does not count."""
        self.path = path
        self.runs: list[dict[str, Any]] = []
        self.rows: dict[Cell, Row] = {}
        for line in read_lines(path):
            if "run" in line:
                self.runs.append(line["run"])
            else:
                row = _row(line["row"])
                self.rows[row.cell] = row

    def begin(self, run: Mapping[str, Any], /) -> None:
        """Notes that the rows to come are of this run.

        Raises ValueError where they cannot stand on one page with those there.
        """
        check_same_origin(self.path, self.runs[-1:], run, names=SHARED)
        self.runs.append(dict(run))
        # Written anew, because the last line may have been cut off.
        lines = [{"run": run} for run in self.runs]
        write_lines(self.path, lines + [_line(row) for row in self.rows.values()])

    def add(self, row: Row, /) -> None:
        """Adds a row to the file."""
        self.rows[row.cell] = row
        append_lines(self.path, [_line(row)])


def origin(arguments: list[str], /) -> dict[str, Any]:
    """Returns what a reader needs to judge the numbers and to make them again."""
    found = provenance(
        device_kind="NVIDIA H200, compiled for", arguments=arguments, seed=0
    )
    command = ["python", "-m", "experiments.scaling", *arguments]
    source = source_digest(sources=SOURCES)
    return found | {"command": " ".join(command), "source": source}


def _row(values: dict[str, Any]) -> Row:
    return Row(**{**values, "cell": from_dict(Cell, values["cell"])})


def _line(row: Row) -> dict[str, Any]:
    return {"row": to_dict(row)}
