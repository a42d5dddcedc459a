"""What stands in a cell of the GPU suite's tables."""

from collections.abc import Iterable

from ..tables import milliseconds, percent
from .floors import Peaks, Work
from .sizes import OURS
from .times import Time, share
from .torch_tensors import NOT_INSTALLED


def time_cell(work: Work, time: Time | None, peaks: Peaks, /) -> str:
    """Returns a time and its share of the floor; an asterisk marks the wall clock."""
    if time is None:
        return "-"
    if time.failure is not None or time.median_seconds is None:
        return _without_time(time)
    reached = share(work, time, peaks)
    mark = "" if time.clock == "kernels" else "*"
    return f"{milliseconds(time.median_seconds)}{mark} ({percent(reached or 0.0)})"


def _without_time(time: Time) -> str:
    """Returns in a word why a contender has no time; a table has the reason."""
    if time.contender == OURS:
        return "failed"
    missing = (time.failure or "").startswith(NOT_INSTALLED)
    return NOT_INSTALLED if missing else "refused"


def wall_cell(time: Time, /) -> str:
    """Returns the median of the rounds' wall times."""
    wall = sorted(time.wall_seconds)
    return milliseconds(wall[len(wall) // 2]) if wall else "-"


def off_the_peers(times: Iterable[Time], /) -> str:
    """Returns the largest difference of the contenders' results from ours."""
    off = [time.difference for time in times if time.difference is not None]
    return f"{max(off):.1e}" if off else "-"


def repeats(repeatable: bool | None, /) -> str:
    """Returns whether two runs are equal in every bit."""
    return {None: "-", True: "yes", False: "NO"}[repeatable]


def number(value: float | None, /) -> str:
    """Returns a ratio with three decimals."""
    return "-" if value is None else f"{value:.3f}"
