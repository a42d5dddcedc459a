"""The numbers of a size: lines of JSON, one for each run and each row."""

from collections.abc import Sequence
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

from .config import Cell, Size, What
from .costs import Peaks
from .rows import Row

# What all rows of one page must share.
SHARED = ("source", "device", "jax", "jaxlib")
# What a run may choose anew: how long it reads.
CHOSEN = ("readings",)


class Results:
    """The rows of a size, in a file to which a run adds."""

    def __init__(self, path: Path, size: Size, /):
        """Reads what the file has; a last line that was cut off does not count.

        Raises ValueError for a file of another configuration.
        """
        self.path = path
        self.size = size
        self.runs: list[dict[str, Any]] = []
        self.rows: dict[tuple[What, str, int], Row] = {}
        for line in read_lines(path):
            if "run" in line:
                self.runs.append(line["run"])
                old = from_dict(Size, line["run"]["size"])
                check_same_configuration(path, old, size, chosen=CHOSEN)
            else:
                self._keep(from_dict(Row, line["row"]))

    @property
    def peaks(self) -> Peaks:
        """The fastest matmul and the fastest reading of memory of all runs."""
        return Peaks(
            max(run["matmul_flops_per_second"] for run in self.runs),
            max(run["stream_bytes_per_second"] for run in self.runs),
        )

    def row(self, what: What, kind: str, context: int, /) -> Row | None:
        """Returns a row; None where there is none."""
        return self.rows.get((what, kind, context))

    def has(self, cell: Cell, /) -> bool:
        """Returns whether every kind of a cell has a row."""
        kinds = self.size.kinds
        return all((cell.what, kind, cell.context) in self.rows for kind in kinds)

    def begin(self, provenance: dict[str, Any], /) -> None:
        """Returns nothing; notes that the lines to come are of this run.

        Raises ValueError where they cannot stand on one page with those there.
        """
        check_same_origin(self.path, self.runs[-1:], provenance, names=SHARED)
        self.runs.append(provenance | {"size": to_dict(self.size)})
        # Written anew, because the last line may have been cut off.
        lines = [{"run": run} for run in self.runs]
        write_lines(self.path, [*lines, *map(_line, self.rows.values())])

    def add(self, rows: Sequence[Row], /) -> None:
        """Returns nothing; the rows are in the file."""
        for row in rows:
            self._keep(row)
        append_lines(self.path, map(_line, rows))

    def _keep(self, row: Row) -> None:
        self.rows[row.what, row.kind, row.context] = row


def _line(row: Row) -> dict[str, Any]:
    return {"row": to_dict(row)}
