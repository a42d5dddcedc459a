"""One cell: every kind at one context in turns, A B C A B C."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kernel_speed.gpu.clocks import reason
from experiments.kernel_speed.timing import interleaved, seconds_of

from .config import Cell, Readings, Size
from .costs import call_tokens, predicted_seconds
from .results import Results
from .rows import Row
from .runners import Runner, TooLarge, make_runner

MACHINE, MACHINE_SIDE = "machine", 1024  # a matmul that takes turns with the kinds


def measure_cell(
    results: Results,
    cell: Cell,
    device: Any,
    /,
    *,
    seed: int,
    progress: Callable[[str], None],
) -> list[Row]:
    """Returns a row for every kind; one that could not run has a row that says why.

    Everything compiles and has run before the clock starts.

    Raises:
      AssertionError: a state is not as large as the account says.
    """
    load = load_average()
    rows = {kind: _foreseen(results, kind, cell) for kind in results.size.kinds}
    warm: dict[str, _Warm] = {}
    for kind, row in rows.items():
        if row.failure is not None:
            continue
        progress(f"compiling {kind}")
        found = _warmed(results.size, kind, cell, device, seed)
        if isinstance(found, str):
            rows[kind] = dataclasses.replace(row, failure=found)
        else:
            warm[kind] = found
    progress("in turns")
    readings = _in_turns(warm, results.size.readings)
    noted = {
        "load_average": load,
        "machine_seconds": tuple(readings.pop(MACHINE)),
    }
    for kind, seconds in readings.items():
        rows[kind] = warm[kind].row(rows[kind], seconds)
    return [dataclasses.replace(row, **noted) for row in rows.values()]


def load_average() -> float | None:
    """Returns how many processes were running or waiting in the last minute, where the
    system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def stream_bytes_per_second(readings: Readings, /, *, seed: int) -> float:
    """Returns how fast memory is read at best: the larger rate of summing a float32
    array and of scaling it, which also writes it."""
    x_M = jax.random.normal(jax.random.key(seed), (readings.stream_numbers,))
    total, scale = jax.jit(jnp.sum), jax.jit(lambda x_M: 1.5 * x_M)
    runs = {1: lambda: total(x_M), 2: lambda: scale(x_M)}  # by arrays moved
    seconds = interleaved(runs, rounds=readings.rounds)
    return max(moved * x_M.nbytes / min(seconds[moved]) for moved in runs)


def _foreseen(results: Results, kind: str, cell: Cell) -> Row:
    """Returns the row of a kind without readings, with a failure if it takes too
    long."""
    row = Row(cell.what, kind, cell.context, call_tokens(results.size, cell))
    predicted = predicted_seconds(results.size, kind, cell, results.rows)
    limit = results.size.limits.call_seconds
    if predicted is None or predicted <= limit:
        return row
    failure = f"would take {predicted:.0f} s a call, more than {limit:.0f}"
    return dataclasses.replace(row, failure=failure, predicted_seconds=predicted)


@dataclasses.dataclass
class _Warm:
    """A kind that has run, the seconds of its last call, and its first failure."""

    runner: Runner
    seconds: float
    failure: str | None = None

    def __call__(self) -> Any:
        """Returns what is there when the call has ended; nothing after a failure."""
        if self.failure is not None:
            return ()
        try:
            return jax.block_until_ready(self.runner.run())
        except Exception as error:  # any: it becomes a row, and the others go on
            self.failure = reason(error)
            return ()

    def row(self, row: Row, seconds: Sequence[float], /) -> Row:
        """Returns the row with the readings; with the failure, where one failed."""
        return dataclasses.replace(
            row,
            tokens=self.runner.tokens,
            seconds=() if self.failure else tuple(seconds),
            state_bytes=self.runner.state_bytes,
            held_bytes=self.runner.held_bytes,
            failure=self.failure,
        )


def _warmed(size: Size, kind: str, cell: Cell, device: Any, seed: int) -> _Warm | str:
    """Returns a kind that is ready for the clock, or why there is none.

    Raises:
      AssertionError: what is counted is not what is measured.
    """
    try:
        return _warm(size, kind, cell, device, seed)
    except AssertionError:
        raise
    except TooLarge as error:
        return str(error)
    except Exception as error:  # any, such as no memory: it becomes a row
        return reason(error)


def _warm(size: Size, kind: str, cell: Cell, device: Any, seed: int) -> _Warm:
    """Returns a kind whose call lasts as long as a reading should."""
    runner = make_runner(size, kind, cell, device, seed=seed)
    seconds = seconds_of(runner.run)
    if cell.what == "decode":
        seconds = seconds_of(runner.run)  # of one token; the first call has compiled
        wanted = round(size.readings.decode_seconds / seconds)
        runner.tokens = max(1, min(size.readings.most_tokens, wanted))
        if runner.tokens > 1:
            seconds = seconds_of(runner.run)
    return _Warm(runner, seconds)


def _in_turns(warm: dict[str, _Warm], readings: Readings) -> dict[str, list[float]]:
    """Returns the seconds of each kind, and of MACHINE, in each round.

    Long calls have fewer rounds; where no kind is left there are none.
    """
    turn = sum(found.seconds for found in warm.values())
    affordable = int(readings.cell_seconds / turn) if turn else readings.rounds
    rounds = min(readings.rounds, max(readings.least_rounds, affordable))
    x_MM = jnp.ones((MACHINE_SIDE, MACHINE_SIDE))
    matmul = jax.jit(jnp.matmul)
    jax.block_until_ready(matmul(x_MM, x_MM))
    runs = {MACHINE: lambda: matmul(x_MM, x_MM), **warm}
    return interleaved(runs, rounds=rounds if warm else 0, warmup_rounds=0)
