"""How long a program's kernels run on the GPU."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

READING_SECONDS = 0.01  # that a reading repeats a program for, about
MOST_CALLS = 50
# A wall time below this a call may be the host's launching; above, kernels that make up
# less than this share of it have been missed.
LAUNCH_SECONDS = 150e-6
KERNELS_SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled candidate, and the operands that its calls rotate through."""

    candidate: Any
    compiled: Callable[..., Any]
    operands: list[Any]

    def start(self, call: int) -> Any:
        """Returns the results of a call, perhaps before they are there."""
        return self.compiled(self.operands[call % len(self.operands)])


# (program, number of the first call, calls) -> seconds of a call
Clock = Callable[[Program, int, int], float]


class ClockError(RuntimeError):
    """The clock has failed, not what it times."""


def wall_clock(program: Program, first: int, calls: int, /) -> float:
    """Returns the seconds of a call of several that are started without waiting."""
    start = time.perf_counter()
    results = None
    for call in range(first, first + calls):
        results = program.start(call)
    jax.block_until_ready(results)
    return (time.perf_counter() - start) / calls


class _Calls(jax.stages.Wrapped):
    """Several calls of a program as what the profiler takes for one jitted function."""

    def __init__(self, run: Callable[[], Any]):
        self._run = run

    def __call__(self) -> Any:
        return self._run()


def kernel_clock(program: Program, first: int, calls: int, /) -> float:
    """Returns the seconds that the kernels of a call run, as CUPTI sees them.

    Raises:
      ClockError: CUPTI is missing, or has seen no kernel.
    """

    def run():
        results = None
        for call in range(first, first + calls):
            results = program.start(call)
        return results

    try:
        from jax.experimental.mosaic.gpu import profiler

        _, milliseconds = profiler.measure(_Calls(run))()  # pyright: ignore
    except Exception as error:  # whatever is missing or has moved: the wall remains
        jax.block_until_ready(run())  # which fails if the program itself has failed
        raise ClockError(f"CUPTI cannot be read: {error}") from error
    if not milliseconds:
        raise ClockError("CUPTI has seen no kernel")
    return 1e-3 * milliseconds / calls


def calls_a_reading(program: Program, /) -> int:
    """Returns how many calls of a warm program make up a reading."""
    seconds = wall_clock(program, 0, 2)
    return max(1, min(MOST_CALLS, round(READING_SECONDS / seconds)))


def find_clock(program: Program, /) -> tuple[Clock, str]:
    """Returns the clock to use, and which it is in words. The program is warm."""
    calls = calls_a_reading(program)
    try:
        kernels = kernel_clock(program, 0, calls)
    except ClockError as error:
        return wall_clock, f"wall clock: {error}"
    wall = wall_clock(program, 0, calls)
    if wall > LAUNCH_SECONDS and kernels < KERNELS_SHARE * wall:
        return wall_clock, "wall clock: CUPTI misses kernels"
    return kernel_clock, "CUPTI's kernel times"
