"""Tiles of one kernel against each other: compiled at once, checked, timed in turns."""

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax

from pallas_kernels.local_attention.tiles import Key, Tile
from pallas_kernels.tune.clock import (
    Clock,
    ClockError,
    Program,
    calls_a_reading,
    find_clock,
    wall_clock,
)
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.problem import Operands, Problem, mean
from pallas_kernels.tune.verdict import (
    COMPILE,
    RUN,
    Refusal,
    check_device,
    failure,
    verdict,
)

LEAST_ROUNDS = 2
RACE_SECONDS = 8.0  # after which a race has no more than the least rounds
SLOW = 1.25  # times the fastest: after the least rounds a tile as slow as that leaves

Measured = dict[
    Tile, float | Refusal
]  # seconds; a tile that time ran out for is absent


class Timing:
    """The clock of a run, found at its first program, and the number of rounds."""

    def __init__(self, rounds: int, clock: Clock | None = None):
        self.rounds = rounds
        self.clock = clock
        self.words = "" if clock is None else "a clock that was given"

    def turns(
        self,
        programs: Sequence[Program],
        /,
        *,
        kept: Collection[Tile],
        late: Callable[[], bool],
    ) -> Measured:
        """Returns the median seconds of each of several warm programs, or its Refusal.

        They take turns, A B C A B C. Those far behind leave early, but the `kept`.
        """
        if not programs:
            return {}
        if self.clock is None:
            self.clock, self.words = find_clock(programs[0])
        try:
            return _turns(programs, self, kept, late)
        except ClockError as error:
            self.clock, self.words = wall_clock, f"wall clock: {error}"
            return _turns(programs, self, kept, late)


def _turns(programs, timing, kept, late) -> Measured:
    running = {program.tile: program for program in programs}
    readings: dict[Tile, list[float]] = {tile: [] for tile in running}
    calls: dict[Tile, int] = {}
    refused: Measured = {}
    end = time.monotonic() + RACE_SECONDS
    for turn in range(timing.rounds):
        if turn >= LEAST_ROUNDS and (late() or time.monotonic() > end):
            break
        for tile, program in list(running.items()):
            try:
                if tile not in calls:
                    calls[tile] = calls_a_reading(program)
                first = turn * calls[tile]
                readings[tile].append(timing.clock(program, first, calls[tile]))
            except ClockError:
                raise
            except Exception as error:  # any: the others go on
                check_device()
                refused[tile] = failure(error, reason=RUN)
                del running[tile]
        if turn + 1 == LEAST_ROUNDS:
            medians = {tile: statistics.median(readings[tile]) for tile in running}
            behind = SLOW * min(medians.values(), default=0.0)
            for tile in [t for t in running if medians[t] > behind and t not in kept]:
                del running[tile]
    seconds = {t: statistics.median(times) for t, times in readings.items() if times}
    return {**seconds, **refused}


class Bench(NamedTuple):
    """One kernel on one problem, on which tiles are raced."""

    kernel: str
    key: Key
    problem: Problem
    operands: list[Operands]
    compiler: Compiler
    timing: Timing
    accepted: dict[Tile, Program]  # so far

    def prepare(self, tiles: Sequence[Tile], /, *, deadline: float) -> Measured:
        """Returns the refusals among the tiles; the others of those that were compiled
        in time are accepted: right, and the same twice."""
        new = [tile for tile in tiles if tile not in self.accepted]
        compiled = self.compiler.compile(
            self.kernel, self.problem.sizes, new, self.operands[0], deadline=deadline
        )
        refused: Measured = {}
        for tile, made in compiled.items():
            if isinstance(made, Refusal):
                refused[tile] = made
                continue
            program = Program(self.kernel, tile, made, self.operands)
            wrong = verdict(program, self.problem.wanted[self.kernel], self.key)
            if wrong is None:
                self.accepted[tile] = program
            else:
                refused[tile] = wrong
        return refused

    def race(
        self, tiles: Sequence[Tile], /, *, kept: Collection[Tile], deadline: float
    ) -> Measured:
        """Returns the seconds of each tile, in one race, or its Refusal."""
        refused = self.prepare(tiles, deadline=deadline)
        programs = [self.accepted[tile] for tile in tiles if tile in self.accepted]
        late = lambda: time.monotonic() > deadline  # noqa: E731
        return {**refused, **self.timing.turns(programs, kept=kept, late=late)}


def operands_of(
    problem: Problem, tile: Tile | None, compiler: Compiler, /, *, deadline: float
) -> list[Operands] | Refusal:
    """Returns what the kernels read, with the results of a forward pass of the tile.

    `tile` None leaves those out, as for the forward pass itself.
    """
    plain = [
        Operands(arrays.inputs, None, None, None, arrays.dout_BTNH)
        for arrays in problem.sets
    ]
    if tile is None:
        return plain
    made = compiler.compile(
        "forward", problem.sizes, [tile], plain[0], deadline=deadline
    )
    forward = made.get(tile, Refusal(COMPILE, "not within the budget"))
    if isinstance(forward, Refusal):
        return forward
    read = []
    try:
        for operands in plain:
            out_BTNH, lse_BTN = forward(operands)
            mean_BTN = mean(out_BTNH, operands.dout_BTNH)
            read.append(operands._replace(out_BTNH=out_BTNH, lse_BTN=lse_BTN))
            read[-1] = read[-1]._replace(mean_BTN=mean_BTN)
        return jax.block_until_ready(read)
    except Exception as error:  # any: then the gradients have nothing to read
        check_device()
        return failure(error, reason=RUN)
