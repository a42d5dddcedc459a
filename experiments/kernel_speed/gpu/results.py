"""The numbers of a run: rows of races, decoding and errors, to JSON and back."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from ..cases import Part
from .floors import Peaks, Work, floor
from .matrix_memory.rows import ErrorRow, MatrixRow, StepRow
from .sizes import OURS, MatrixShape, MatrixStep, Window
from .times import Time, share

LARGEST_ERROR = 2e-2  # bf16, relative to the largest value of each array

Row = TypeVar("Row")
RaceKey = tuple[int, int, Window, Part]  # row, width, window, part
DecodeKey = tuple[int, int, int]  # batch, width, window


@dataclasses.dataclass(frozen=True)
class RaceRow:
    """One part of one case, with the times of all contenders, ours first.

    `error` is our largest difference from float32, relative to the largest value of
    each array; `repeatable`: two of our runs were equal in every bit. None: not looked.
    """

    row: int
    batch: int
    width: int
    window: Window
    part: Part
    flops: float
    bytes: int
    times: list[Time]
    error: float | None = None
    repeatable: bool | None = None

    @property
    def key(self) -> RaceKey:
        """What a resumed run knows it by."""
        return self.row, self.width, self.window, self.part

    @property
    def work(self) -> Work:
        """FLOPs and bytes of the attention."""
        return Work(self.flops, self.bytes)

    @property
    def name(self) -> str:
        """The case in words."""
        window = "full" if self.window is None else f"W {self.window}"
        return f"rows of {self.row}, width {self.width}, {window}, {self.part}"

    def time_of(self, contender: str, /) -> Time | None:
        """Returns the contender's time, None where it was not meant to run."""
        return next((t for t in self.times if t.contender == contender), None)


@dataclasses.dataclass(frozen=True)
class DecodeRow:
    """One new token a row at one batch and window."""

    batch: int
    width: int
    window: int
    flops: float
    bytes: int
    time: Time

    @property
    def key(self) -> DecodeKey:
        """What a resumed run knows it by."""
        return self.batch, self.width, self.window

    @property
    def work(self) -> Work:
        """FLOPs and bytes of the step."""
        return Work(self.flops, self.bytes)

    @property
    def name(self) -> str:
        """The case in words."""
        return f"decode, batch {self.batch}, width {self.width}, W {self.window}"


@dataclasses.dataclass
class GpuResults:
    """Everything measured up to now, by this run and those that it resumes.

    `notes` says what was not done, and why.
    """

    provenance: dict[str, Any]
    quick: bool
    peaks: Peaks
    clock: str
    notes: list[str] = dataclasses.field(default_factory=list)
    races: list[RaceRow] = dataclasses.field(default_factory=list)
    decodes: list[DecodeRow] = dataclasses.field(default_factory=list)

    matrices: list[MatrixRow] = dataclasses.field(default_factory=list)
    matrix_steps: list[StepRow] = dataclasses.field(default_factory=list)
    errors: list[ErrorRow] = dataclasses.field(default_factory=list)

    def faults(self) -> list[str]:
        """Returns a line for each of our kernels that failed, or computed wrongly."""
        faults = [(row.name, _race_fault(row)) for row in self.races]
        faults += [(row.name, row.time.failure) for row in self.decodes]
        ours = [row for row in self.errors if row.contender == OURS]
        faults += [(row.name, _error_fault(row)) for row in ours]
        faults += [(row.name, _race_fault(row)) for row in self.matrices]
        faults += [(row.name, row.time.failure) for row in self.matrix_steps]
        return [f"{name}: {fault}" for name, fault in faults if fault]


def _race_fault(row: RaceRow | MatrixRow) -> str | None:
    """Returns what is wrong with our kernels in a race, None where nothing is."""
    if failure := row.times[0].failure:
        return failure
    error = row.error if isinstance(row, RaceRow) else None
    if error is not None and error > LARGEST_ERROR:
        return f"error {error:.1e}"
    return None if row.repeatable else "two runs differ"


def _error_fault(row: ErrorRow) -> str | None:
    if row.failure:
        return row.failure
    name = max(row.errors, key=lambda name: row.errors[name])
    worst = row.errors[name]
    return f"{name} {worst:.1e}" if worst > LARGEST_ERROR else None


def to_json(results: GpuResults, claims: list[Any], /) -> str:
    """Returns the numbers, with the floor and the share reached beside each time."""
    content = dataclasses.asdict(results)
    content["peaks"] = results.peaks._asdict()
    for name in ("races", "matrices"):
        for row, written in zip(getattr(results, name), content[name], strict=True):
            written |= _floor(row.work, results.peaks)
            for time, entry in zip(row.times, written["times"], strict=True):
                entry["share_of_floor"] = share(row.work, time, results.peaks)
    for name in ("decodes", "matrix_steps"):
        for row, written in zip(getattr(results, name), content[name], strict=True):
            written |= _floor(row.work, results.peaks)
            written["share_of_floor"] = share(row.work, row.time, results.peaks)
    content["claims"] = [dataclasses.asdict(claim) for claim in claims]
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _floor(work: Work, peaks: Peaks) -> dict[str, Any]:
    seconds, bound = floor(work, peaks)
    return {"floor_seconds": seconds, "floor_bound": bound}


def read_results(path: Path, /) -> GpuResults:
    """Returns what a run has written.

    Raises:
      ValueError: the file is no JSON of this suite.
    """
    kinds = {
        "races": (RaceRow, None),
        "decodes": (DecodeRow, None),
        "matrices": (MatrixRow, MatrixShape),
        "matrix_steps": (StepRow, MatrixStep),
        "errors": (ErrorRow, MatrixShape),
    }
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["peaks"] = Peaks(**content["peaks"])
        for name, (kind, shape) in kinds.items():
            content[name] = [_row(kind, shape, row) for row in content[name]]
        return _fill(GpuResults, content)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no results of the GPU suite: {error}") from None


def _row(kind: type[Row], shape: type | None, row: dict[str, Any]) -> Row:
    """Returns a row, whose times and shape are dataclasses too."""
    row = dict(row)
    if "times" in row:
        row["times"] = [_fill(Time, time) for time in row["times"]]
    if "time" in row:
        row["time"] = _fill(Time, row["time"])
    if shape is not None:
        row["shape"] = _fill(shape, row["shape"])
    return _fill(kind, row)


def _fill(kind: type[Row], values: dict[str, Any]) -> Row:
    """Returns a dataclass from its own fields among the values."""
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore
    return kind(**{name: values[name] for name in names})
