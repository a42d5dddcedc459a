"""The time of a contender: the readings of all rounds, and what they come to."""

import dataclasses
import statistics

from .clocks import Clock, Reading, Refusal, believed, seconds_of
from .floors import Peaks, Work, floor
from .sizes import OURS


@dataclasses.dataclass(frozen=True)
class Time:
    """The time of one contender: seconds a call in each round, or why there is none.

    `clock` says which of the two `median_seconds` is. `kernels` names those of the last
    round. `ratio` is ours / theirs, the median of the rounds; `difference` is that of
    ours and theirs, relative to the largest value of each array. `peak_bytes` is what a
    call takes beside its inputs.
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
    peak_bytes: int | None = None


def time_of(
    name: str,
    readings: list[Reading] | Refusal,
    ours: list[Reading] | Refusal,
    /,
    *,
    difference: float | None = None,
    peak_bytes: int | None = None,
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
        peak_bytes=peak_bytes,
    )


def share(work: Work, time: Time | None, peaks: Peaks, /) -> float | None:
    """Returns floor / time, None where there is no time."""
    if time is None or time.median_seconds is None:
        return None
    return floor(work, peaks).seconds / time.median_seconds
