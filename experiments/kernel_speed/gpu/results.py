"""The numbers of a run: rows of races and of decoding, to JSON and back."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any, TypeVar

from ..cases import Part
from .clocks import Clock, Reading, Refusal, believed, seconds_of
from .floors import Peaks, Work, floor
from .sizes import OURS, Window

LARGEST_ERROR = 2e-2  # bf16, relative to the largest value of each array

Row = TypeVar("Row")
RaceKey = tuple[int, int, Window, Part]  # row, width, window, part
DecodeKey = tuple[int, int, int]  # batch, width, window


@dataclasses.dataclass(frozen=True)
class Time:
    """The time of one contender: seconds a call in each round, or why there is none.

    `clock` says which of the two `median_seconds` is. `kernels` names those of the last
    round. `ratio` is ours / theirs, the median of the rounds; `difference` is that of
    ours and theirs, relative to the largest value of each array.
    """

    contender: str
    failure: str | None = None
    wall_seconds: list[float] = dataclasses.field(default_factory=list)
    kernel_seconds: list[float] | None = None
    kernels: dict[str, float] | None = None
    clock: Clock = "wall"
    median_seconds: float | None = None
    ratio: float | None = None
    difference: float | None = None


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

    def faults(self) -> list[str]:
        """Returns a line for each of our kernels that failed, or computed wrongly."""
        faults = []
        for row in self.races:
            if failure := row.times[0].failure:
                faults.append(f"{race_name(row)}: {failure}")
            elif row.error is not None and row.error > LARGEST_ERROR:
                faults.append(f"{race_name(row)}: error {row.error:.1e}")
            elif not row.repeatable:
                faults.append(f"{race_name(row)}: two runs differ")
        for row in self.decodes:
            if failure := row.time.failure:
                faults.append(f"{decode_name(row)}: {failure}")
        return faults


def race_name(row: RaceRow, /) -> str:
    """Returns the case in words."""
    window = "full" if row.window is None else f"W {row.window}"
    return f"rows of {row.row}, width {row.width}, {window}, {row.part}"


def decode_name(row: DecodeRow, /) -> str:
    """Returns the case in words."""
    return f"decode, batch {row.batch}, width {row.width}, W {row.window}"


def time_of(
    name: str,
    readings: list[Reading] | Refusal,
    ours: list[Reading] | Refusal,
    /,
    *,
    difference: float | None = None,
) -> Time:
    """Returns the time of a contender, its ratio taken within rounds by one clock."""
    if isinstance(readings, Refusal):
        return Time(name, readings.reason)
    kernels = believed(readings)
    ratio = None
    if name != OURS and isinstance(ours, list):
        both = kernels and believed(ours)
        pairs = zip(
            seconds_of(ours, kernels=both),
            seconds_of(readings, kernels=both),
            strict=False,  # one may have left the race
        )
        ratio = statistics.median(a / b for a, b in pairs)
    known = [reading.kernel_seconds for reading in readings]
    return Time(
        name,
        wall_seconds=[reading.wall_seconds for reading in readings],
        kernel_seconds=None if None in known else [float(s or 0.0) for s in known],
        kernels=readings[-1].kernels,
        clock="kernels" if kernels else "wall",
        median_seconds=statistics.median(seconds_of(readings, kernels=kernels)),
        ratio=ratio,
        difference=difference,
    )


def share(work: Work, time: Time | None, peaks: Peaks, /) -> float | None:
    """Returns floor / time, None where there is no time."""
    if time is None or time.median_seconds is None:
        return None
    return floor(work, peaks).seconds / time.median_seconds


def to_json(results: GpuResults, claims: list[Any], /) -> str:
    """Returns the numbers, with the floor and the share reached beside each time."""
    content = dataclasses.asdict(results)
    content["peaks"] = results.peaks._asdict()
    for row, written in zip(results.races, content["races"], strict=True):
        written |= _floor(row.work, results.peaks)
        for time, entry in zip(row.times, written["times"], strict=True):
            entry["share_of_floor"] = share(row.work, time, results.peaks)
    for row, written in zip(results.decodes, content["decodes"], strict=True):
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["peaks"] = Peaks(**content["peaks"])
        content["races"] = [_race(row) for row in content["races"]]
        content["decodes"] = [_decode(row) for row in content["decodes"]]
        return _fill(GpuResults, content)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no results of the GPU suite: {error}") from None


def _race(row: dict[str, Any]) -> RaceRow:
    return _fill(RaceRow, {**row, "times": [_fill(Time, t) for t in row["times"]]})


def _decode(row: dict[str, Any]) -> DecodeRow:
    return _fill(DecodeRow, {**row, "time": _fill(Time, row["time"])})


def _fill(kind: type[Row], values: dict[str, Any]) -> Row:
    """Returns a dataclass from its own fields among the values."""
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore
    return kind(**{name: values[name] for name in names})
