"""Coordinate descent over candidates, from the default on.

Each step races those one move away from the best against it and against the anchor,
which is the default wherever that works: all ratios are to its time in the same race.
The descent ends where no move gains a hundredth, which is about what a clock can tell.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from pallas_kernels.tune.race import Measured
from pallas_kernels.tune.space import Candidate, Space
from pallas_kernels.tune.verdict import Refusal

GAIN = 0.01
BATCH = 16  # candidates that are tried between two looks at the time
HOPELESS = 64  # candidates of which none works: then no more are tried


class Trial(NamedTuple):
    """What became of a candidate in its last race: a time, or a refusal."""

    candidate: Candidate
    seconds: float | None = None
    ratio: float | None = None  # to the anchor's seconds in that race
    refusal: Refusal | None = None


@dataclasses.dataclass
class Outcome:
    """What a search has found: `best` None where nothing works, or was reached."""

    trials: dict[Candidate, Trial] = dataclasses.field(default_factory=dict)
    anchor: Candidate | None = None
    best: Candidate | None = None
    finished: bool = False

    def ranking(self) -> list[Candidate]:
        """Returns what works: the best, then the others by their ratio."""
        timed = [trial for trial in self.trials.values() if trial.ratio is not None]
        place = lambda trial: (trial.candidate != self.best, trial.ratio)  # noqa: E731
        order = sorted(timed, key=lambda trial: (*place(trial), trial.candidate))
        return [trial.candidate for trial in order]


class Race(Protocol):
    """Bench.race."""

    def __call__(
        self,
        candidates: Sequence[Candidate],
        /,
        *,
        kept: Sequence[Candidate],
        deadline: float,
    ) -> Measured: ...


def search(
    space: Space, starts: Sequence[Any], race: Race, /, *, deadline: float
) -> Outcome:
    """Returns the outcome of the descent through the space.

    `starts` and the space's landmarks are raced first, and the descent sets out from
    the first of them. Unfinished where the deadline, by time.monotonic, comes before
    the end.
    """
    outcome = Outcome()
    default = space.candidates[0]
    starts = [start for start in starts if start in space.candidates]
    starts = [*starts, default, *space.landmarks]
    batch = list(dict.fromkeys([default, *starts, *space.around(starts[0])]))
    while batch:
        if time.monotonic() > deadline:
            return outcome
        kept = dict.fromkeys(filter(None, (outcome.anchor, outcome.best)))
        found = race([*kept, *batch], kept=list(kept) or [default], deadline=deadline)
        if not _record(outcome, found, [*kept, *batch]):
            return outcome
        batch = _next(outcome, space)[:BATCH]
    outcome.finished = True
    return outcome


def _next(outcome: Outcome, space: Space) -> list[Any]:
    """Returns what to try next: around the best, or whatever promises most."""
    if outcome.best is not None:
        around = space.around(outcome.best)
    else:
        around = space.candidates if len(outcome.trials) < HOPELESS else []
    return [candidate for candidate in around if candidate not in outcome.trials]


def _record(outcome: Outcome, found: Measured, raced: Sequence[Candidate]) -> bool:
    """Returns whether to go on; puts a race into the outcome.

    Not to go on is right where candidates are missing for want of time, or where the
    anchor or the best have failed.
    """
    seconds: dict[Candidate, float] = {}
    for candidate in raced:
        result = found.get(candidate)
        if isinstance(result, Refusal):
            outcome.trials[candidate] = Trial(candidate, refusal=result)
        elif result is not None:
            seconds[candidate] = result
    if outcome.anchor is None and raced[0] in found:
        outcome.anchor = outcome.best = next(iter(seconds), None)
    anchor, best = outcome.anchor, outcome.best
    if anchor is None or best is None:
        return len(found) == len(raced)
    if anchor not in seconds or best not in seconds:
        return False
    for candidate, taken in seconds.items():
        ratio = taken / seconds[anchor]
        outcome.trials[candidate] = Trial(candidate, taken, ratio)
    quickest = min(seconds, key=lambda candidate: seconds[candidate])
    if seconds[quickest] < (1 - GAIN) * seconds[best]:
        outcome.best = quickest
    return len(found) == len(raced)


def settle(
    outcome: Outcome, confirm: Callable[[Any], Refusal | None], /
) -> Candidate | None:
    """Returns the best one that is confirmed, or None; the others become refusals.

    Where the best is not, the next ones are asked, by their ratio.
    """
    for candidate in outcome.ranking():
        refusal = confirm(candidate)
        if refusal is None:
            return candidate
        outcome.trials[candidate] = Trial(candidate, refusal=refusal)
    return None
