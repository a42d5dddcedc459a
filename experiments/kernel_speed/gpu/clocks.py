"""Readings: how long a call takes the host to see done, and its kernels to run."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from .sizes import GpuSizes

# Below this the wall time of a call may be the host's launching.
LAUNCH_SECONDS = 150e-6
KERNELS_SHARE = 0.7  # of the wall time; kernels that make up less have been lost
MOST_CALLS = 50

Clock = Literal["kernels", "wall"]
Kernels = dict[str, float]  # name -> seconds
# Runs what it is given twice; returns the seconds of the kernels of the second run.
KernelClock = Callable[[Callable[[], Any]], Kernels | None]


class Contender(NamedTuple):
    """Something that is timed.

    `launch(i)` starts call i, on the i-th of its rotating inputs, and returns at once;
    `wait` blocks until a result of `launch` is there; `arrays` gives that result as
    JAX's arrays, those of our operation; `peak_bytes` the most memory that a call takes
    beside its inputs, None where nothing tells it.
    """

    launch: Callable[[int], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    arrays: Callable[[Any], Any] = lambda result: result
    peak_bytes: Callable[[], int | None] = lambda: None


class Refusal(NamedTuple):
    """Why something could not run: the first line of an error."""

    reason: str


class Reading(NamedTuple):
    """Seconds a call: on the wall, and of each kernel by name (None: unknown)."""

    wall_seconds: float
    kernels: Kernels | None

    @property
    def kernel_seconds(self) -> float | None:
        """The sum over the kernels."""
        return None if self.kernels is None else sum(self.kernels.values())


class _Launches(jax.stages.Wrapped):
    """A function without arguments that the profiler takes for a compiled one."""

    def __init__(self, run: Callable[[], Any]):
        self._run = run

    def __call__(self) -> Any:
        return self._run()


def cupti_clock(run: Callable[[], Any], /) -> Kernels | None:
    """Returns the seconds of the kernels that the second of two runs starts, by name.

    None where CUPTI has seen no kernel. The run must end after its kernels.

    Raises:
      Exception: this machine, or this jax, has no CUPTI.
    """
    from jax.experimental.mosaic.gpu import profiler

    _, kernels = profiler.measure(_Launches(run), aggregate=False)()  # pyright: ignore
    if not kernels:
        return None
    seconds: Kernels = {}
    for name, milliseconds in kernels:
        seconds[name] = seconds.get(name, 0.0) + 1e-3 * milliseconds
    return seconds


def find_kernel_clock(contender: Contender, /) -> tuple[KernelClock | None, str]:
    """Returns the clock of kernels, or None, and the reason in words.

    The contender is one long kernel: wall and kernels must agree on it.
    """
    try:
        cupti_clock(lambda: contender.wait(contender.launch(0)))
    except Exception as error:  # whatever is missing or has moved: the wall remains
        return None, f"wall clock: CUPTI cannot be read ({reason(error)})"
    reading = read(contender, calls=10, kernel_clock=cupti_clock)
    if reading.kernel_seconds is None or not believable(reading):
        return None, "wall clock: CUPTI misses kernels of a matmul"
    return cupti_clock, "CUPTI's kernel times"


def read(
    contender: Contender,
    /,
    *,
    calls: int,
    kernel_clock: KernelClock | None,
    first: int = 0,
) -> Reading:
    """Returns the seconds of one of `calls` calls that are started without waiting."""
    walls = []

    def run():
        start = time.perf_counter()
        result = None
        for i in range(first, first + calls):
            result = contender.launch(i)
        contender.wait(result)
        walls.append((time.perf_counter() - start) / calls)

    if kernel_clock is None:
        run()
        return Reading(walls[0], None)
    try:
        kernels = kernel_clock(run)
    except Exception:  # the profiler's own; a contender's fails again without it
        run()
        return Reading(walls[-1], None)
    if kernels is not None:
        kernels = {name: seconds / calls for name, seconds in kernels.items()}
    # The first run is not traced, so its wall time is the undisturbed one.
    return Reading(walls[0], kernels)


def believable(reading: Reading, /) -> bool:
    """Returns whether the kernels account for the wall time of a reading.

    They do not where CUPTI has lost some (those of a CUDA graph, or copies, which are
    no kernels), or where the host holds them up.
    """
    seconds = reading.kernel_seconds
    if seconds is None:
        return False
    wall = reading.wall_seconds
    return wall <= LAUNCH_SECONDS or seconds >= KERNELS_SHARE * wall


def calls_a_reading(contender: Contender, sizes: GpuSizes, /) -> int:
    """Returns how many calls make up a reading; the contender is warm."""
    seconds = read(contender, calls=2, kernel_clock=None).wall_seconds
    return max(1, min(MOST_CALLS, round(sizes.reading_seconds / seconds)))


def read_in_turns(
    contenders: Mapping[str, Contender],
    sizes: GpuSizes,
    /,
    *,
    kernel_clock: KernelClock | None,
) -> dict[str, list[Reading] | Refusal]:
    """Returns the readings of each contender in each round, A B C A B C.

    The contenders are warm. The rounds end early where the part takes too long. One
    that fails leaves the race, with the reason.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in contenders}
    calls: dict[str, int] = {}
    failures: dict[str, list[Reading] | Refusal] = {}
    start = time.perf_counter()
    for turn in range(sizes.rounds):
        late = time.perf_counter() - start > sizes.part_seconds
        if late and turn >= sizes.least_rounds:
            break
        for name, contender in contenders.items():
            if name in failures:
                continue
            try:
                if name not in calls:
                    calls[name] = calls_a_reading(contender, sizes)
                reading = read(
                    contender,
                    calls=calls[name],
                    kernel_clock=kernel_clock,
                    first=turn * calls[name],
                )
            except Exception as error:  # any: it becomes a row
                failures[name] = Refusal(reason(error))
            else:
                readings[name].append(reading)
    return {**readings, **failures}


def believed(readings: list[Reading], /) -> bool:
    """Returns whether the kernel times of all rounds can be used."""
    return all(believable(reading) for reading in readings)


def seconds_of(readings: list[Reading], /, *, kernels: bool) -> list[float]:
    """Returns a time for each round, of the kernels or on the wall."""
    if not kernels:
        return [reading.wall_seconds for reading in readings]
    return [reading.kernel_seconds or 0.0 for reading in readings]


def reason(error: BaseException, /) -> str:
    """Returns an error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
