"""Candidates against each other: compiled at once, checked, timed in turns."""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pallas_kernels.tune.clock import (
    Clock,
    ClockError,
    Program,
    calls_a_reading,
    find_clock,
    wall_clock,
)
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.problem import Call, Right
from pallas_kernels.tune.space import Candidate
from pallas_kernels.tune.verdict import RUN, Refusal, check_device, failure, verdict

LEAST_ROUNDS = 2
RACE_SECONDS = 8.0  # after which a race has no more than the least rounds
SLOW = 1.25  # times the fastest: after the least rounds one as slow as that leaves

# Seconds; a candidate that time ran out for is absent.
Measured = dict[Candidate, float | Refusal]


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
        kept: Collection[Candidate],
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
    running = {program.candidate: program for program in programs}
    readings: dict[Candidate, list[float]] = {other: [] for other in running}
    calls: dict[Candidate, int] = {}
    refused: Measured = {}
    end = time.monotonic() + RACE_SECONDS
    for turn in range(timing.rounds):
        if turn >= LEAST_ROUNDS and (late() or time.monotonic() > end):
            break
        for other, program in list(running.items()):
            try:
                if other not in calls:
                    calls[other] = calls_a_reading(program)
                first = turn * calls[other]
                readings[other].append(timing.clock(program, first, calls[other]))
            except ClockError:
                raise
            except Exception as error:  # any: the others go on
                check_device()
                refused[other] = failure(error, reason=RUN)
                del running[other]
        if turn + 1 == LEAST_ROUNDS:
            medians = {other: statistics.median(readings[other]) for other in running}
            behind = SLOW * min(medians.values(), default=0.0)
            for other in [t for t in running if medians[t] > behind and t not in kept]:
                del running[other]
    seconds = {t: statistics.median(times) for t, times in readings.items() if times}
    return {**seconds, **refused}


class Bench(NamedTuple):
    """What the candidates of one kernel are raced on, in one problem."""

    call: Callable[[Any], Call]  # of a candidate
    operands: list[Any]
    wanted: Mapping[str, Right]
    precise: bool
    compiler: Compiler
    timing: Timing
    accepted: dict[Candidate, Program]  # so far

    def prepare(self, candidates: Sequence[Any], /, *, deadline: float) -> Measured:
        """Returns the refusals among the candidates; the others of those that were
        compiled in time are accepted: right, and the same twice."""
        calls = {
            candidate: self.call(candidate)
            for candidate in candidates
            if candidate not in self.accepted
        }
        compiled = self.compiler.compile(calls, self.operands[0], deadline=deadline)
        refused: Measured = {}
        for candidate, made in compiled.items():
            if isinstance(made, Refusal):
                refused[candidate] = made
                continue
            program = Program(candidate, made, self.operands)
            wrong = verdict(program, self.wanted, precise=self.precise)
            if wrong is None:
                self.accepted[candidate] = program
            else:
                refused[candidate] = wrong
        return refused

    def race(
        self, candidates: Sequence[Any], /, *, kept: Collection[Any], deadline: float
    ) -> Measured:
        """Returns the seconds of each candidate, in one race, or its Refusal."""
        refused = self.prepare(candidates, deadline=deadline)
        programs = [self.accepted[one] for one in candidates if one in self.accepted]
        late = lambda: time.monotonic() > deadline  # noqa: E731
        return {**refused, **self.timing.turns(programs, kept=kept, late=late)}
