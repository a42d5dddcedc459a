"""The numbers: a line of JSON for the run, and one for each case and form."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.sweep.lines import append_lines, read_lines, write_lines

from .cases import Case
from .errors import Error, Errors

# What two runs must share for their rows to stand in one table.
SHARED = ("source", "device", "jax", "jaxlib", "numpy", "torch", "triton")

Key = tuple[Case, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """The errors of one form in one case, and the seconds that it took to compile and
    run once."""

    case: Case
    form: str
    seconds: float
    errors: Errors

    @property
    def key(self) -> Key:
        """What a resumed run knows it by."""
        return self.case, self.form


class Results:
    """The rows of a run and of those that it goes on with, in a file from the start."""

    def __init__(self, path: Path, provenance: dict[str, Any], /):
        """Reads the rows of the file, if they are of the same source, device and
        versions, and writes them again under the new provenance."""
        self.path = path
        self.provenance = dict(provenance)
        self.rows: list[Row] = []
        if path.is_file():
            old, rows = _read(path)
            if all(old.get(name) == provenance.get(name) for name in SHARED):
                self.rows = rows
                self.provenance["resumed"] = old.get("date")
        lines = [{"run": self.provenance}, *map(_line, self.rows)]
        write_lines(path, lines, infinite=True)

    def add(self, row: Row, /) -> None:
        """Returns nothing; the row is in the file."""
        self.rows.append(row)
        append_lines(self.path, [_line(row)], infinite=True)


def _read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Returns the provenance and the rows; nothing of a file that is no such file.

    A last line that a killed run has left half written is dropped.
    """
    try:
        first, *others = read_lines(path)
        provenance = first["run"]
    except (ValueError, KeyError, TypeError):
        return {}, []
    rows = []
    for line in others:
        try:
            rows.append(_row(line))
        except (ValueError, KeyError, TypeError):
            break
    return provenance, rows


def _line(row: Row) -> dict[str, Any]:
    errors = {
        group: {name: error._asdict() for name, error in names.items()}
        for group, names in row.errors.items()
    }
    content = {**dataclasses.asdict(row.case), "form": row.form}
    return {**content, "seconds": row.seconds, "errors": errors}


def _row(content: dict[str, Any]) -> Row:
    errors = {
        group: {name: Error(**error) for name, error in names.items()}
        for group, names in content.pop("errors").items()
    }
    form, seconds = content.pop("form"), content.pop("seconds")
    return Row(Case(**content), form, seconds, errors)
