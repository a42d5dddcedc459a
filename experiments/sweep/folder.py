"""The folder of a sweep: what it is of, and for each cell its result, log and attempt.

sweep.json                 name and shared configuration of the grid
cells/NAME/result.json     moved into place in one rename once a cell is finished
cells/NAME/log.txt         what the cell printed, attempt after attempt
cells/NAME/attempt.json    where the newest attempt's log is, and its Slurm job
jobs/                      what submitit writes
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swa_jax.configuration import plain, shown
from swa_jax.data.one_move import write_in_one_move
from swa_jax.training.lock import check_free, locked

from .grid import Sweep

SWEEP_FILE = "sweep.json"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
ATTEMPT_FILE = "attempt.json"
_TAIL_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a cell came to, and how long its last attempt took."""

    result: dict[str, Any]
    seconds: float


class SweepFolder:
    """The cells of a grid in a folder, which need not exist yet."""

    def __init__(self, path: Path, sweep: Sweep, /):
        """Raises ValueError for a folder with cells of another configuration."""
        self.path = Path(path).absolute()
        self.sweep = sweep
        self._check_same()

    def cell(self, name: str, /) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / name

    @property
    def jobs(self) -> Path:
        """The folder for what submitit writes."""
        return self.path / "jobs"

    def is_finished(self, name: str, /) -> bool:
        """Whether a cell has its result."""
        return (self.cell(name) / RESULT_FILE).is_file()

    def finished(self, name: str, /) -> Finished | None:
        """What a cell came to; None where it is not finished.

        Raises ValueError for a result of another cell than the grid's of that name.
        """
        values = _read(self.cell(name) / RESULT_FILE)
        if values is None:
            return None
        cell = json.loads(json.dumps(plain(self.sweep.cells[name])))
        if other := _differences(values.get("cell"), cell):
            raise ValueError(
                f"{self.cell(name)} is of another configuration: {_told(other)}. Move "
                "it away, or choose another --out"
            )
        return Finished(values["result"], values["seconds"])

    def begin_attempt(self, name: str, /, *, log: Path, job: str | None) -> None:
        """Notes that a cell is attempted, and where that shows."""
        self.cell(name).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"log": str(log), "job": job}) + "\n"
        write_in_one_move(self.cell(name) / ATTEMPT_FILE, text)

    def log_of(self, name: str, /) -> Path | None:
        """The log of a cell's newest attempt; None where there was none."""
        values = _read(self.cell(name) / ATTEMPT_FILE)
        return None if values is None else Path(values["log"])

    def job_of(self, name: str, /) -> str | None:
        """The Slurm job of a cell's newest attempt."""
        values = _read(self.cell(name) / ATTEMPT_FILE)
        return None if values is None else values["job"]

    def _check_same(self) -> None:
        there = _read(self.path / SWEEP_FILE)
        if there is None:
            return
        if other := _differences(there, _identity(self.sweep)):
            raise ValueError(
                f"{self.path} has cells of another configuration: {_told(other)}. Move "
                "it away, or choose another --out"
            )


@contextmanager
def sweep_folder(path: Path, sweep: Sweep, /) -> Iterator[SweepFolder]:
    """The folder of a sweep, which no other command writes while the block runs.

    Raises ValueError where another process has it, or where it has cells of another
    configuration.
    """
    check_free(path)
    SweepFolder(path, sweep)  # a folder that is refused stays as it is
    with locked(path):
        folder = SweepFolder(path, sweep)
        text = json.dumps(_identity(sweep), indent=2) + "\n"
        write_in_one_move(folder.path / SWEEP_FILE, text)
        yield folder


def last_lines(log: Path | None, /, *, count: int = 12) -> list[str]:
    """The last lines of a log, as a terminal can show them."""
    if log is None or not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    # A progress bar writes over its line; what it wrote last stands.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    shown_lines = [
        "".join(x if x.isprintable() or x == "\t" else "?" for x in line).rstrip()
        for line in lines
    ]
    return [line for line in shown_lines if line][-count:]


def _identity(sweep: Sweep) -> dict[str, Any]:
    shared = json.loads(json.dumps(plain(dict(sweep.shared))))
    return {"sweep": sweep.name, "shared": shared}


def _read(path: Path) -> dict[str, Any] | None:
    """The object of a file; None where there is no file.

    Raises ValueError for one that is damaged: such files are moved into place whole.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it") from None


def _differences(there: Any, here: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted names of what differs, with both values."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return {} if there == here else {path: (there, here)}
    found = {}
    for name in dict.fromkeys([*there, *here]):
        inner = f"{path}.{name}" if path else name
        found |= _differences(there.get(name), here.get(name), inner)
    return found


def _told(differences: dict[str, tuple[Any, Any]]) -> str:
    parts = [
        f"{name.removeprefix('shared.')} is {shown(there)} there and {shown(here)} here"
        for name, (there, here) in list(differences.items())[:4]
    ]
    more = len(differences) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")
