"""Coordinate descent over tiles, from the default on.

Each step races the tiles one move away from the best against it and against the anchor,
which is the default wherever that works: all ratios are to its time in the same race.
The descent ends where no move gains a hundredth, which is about what a clock can tell.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pallas_kernels.local_attention.tiles import Tile
from pallas_kernels.tune.candidates import moves_from
from pallas_kernels.tune.race import Measured
from pallas_kernels.tune.verdict import Refusal

GAIN = 0.01
BATCH = 16  # tiles that are tried between two looks at the time
HOPELESS = 64  # tiles of which none works: then no more are tried


class Trial(NamedTuple):
    """What became of a tile in its last race: a time, or a refusal."""

    tile: Tile
    seconds: float | None = None
    ratio: float | None = None  # to the anchor's seconds in that race
    refusal: Refusal | None = None


@dataclasses.dataclass
class Outcome:
    """What a search has found: `best` None where no tile works, or none was reached."""

    trials: dict[Tile, Trial] = dataclasses.field(default_factory=dict)
    anchor: Tile | None = None
    best: Tile | None = None
    finished: bool = False

    def ranking(self) -> list[Tile]:
        """Returns the tiles that work: the best, then the others by their ratio."""
        timed = [trial for trial in self.trials.values() if trial.ratio is not None]
        order = sorted(timed, key=lambda t: (t.tile != self.best, t.ratio, t.tile))
        return [trial.tile for trial in order]


class Race(Protocol):
    """Bench.race."""

    def __call__(
        self, tiles: Sequence[Tile], /, *, kept: Sequence[Tile], deadline: float
    ) -> Measured: ...


def search(
    space: Sequence[Tile], starts: Sequence[Tile], race: Race, /, *, deadline: float
) -> Outcome:
    """Returns the outcome of the descent through the space.

    The space is in the order of promise, the default first. `starts` are raced first,
    and the descent sets out from the first of them. Unfinished where the deadline, by
    time.monotonic, comes before the end.
    """
    outcome = Outcome()
    starts = list(dict.fromkeys([*starts, space[0]]))
    batch = list(dict.fromkeys([space[0], *starts, *_around(starts[0], space)]))
    while batch:
        if time.monotonic() > deadline:
            return outcome
        kept = [tile for tile in (outcome.anchor, outcome.best) if tile is not None]
        kept = list(dict.fromkeys(kept))
        found = race([*kept, *batch], kept=kept or [space[0]], deadline=deadline)
        if not _record(outcome, found, [*kept, *batch]):
            return outcome
        batch = _next(outcome, space)[:BATCH]
    outcome.finished = True
    return outcome


def _around(tile: Tile, space: Sequence[Tile]) -> list[Tile]:
    """Returns the tiles of the space that are one move away."""
    moves = set(moves_from(tile))
    return [other for other in space if other in moves]


def _next(outcome: Outcome, space: Sequence[Tile]) -> list[Tile]:
    """Returns what to try next: around the best, or whatever promises most."""
    around = space if outcome.best is None else _around(outcome.best, space)
    if outcome.best is None and len(outcome.trials) >= HOPELESS:
        return []
    return [tile for tile in around if tile not in outcome.trials]


def _record(outcome: Outcome, found: Measured, raced: Sequence[Tile]) -> bool:
    """Returns whether to go on; puts a race into the outcome.

    Not to go on is right where tiles are missing for want of time, or where the anchor
    or the best have failed.
    """
    seconds: dict[Tile, float] = {}
    for tile in raced:
        result = found.get(tile)
        if isinstance(result, Refusal):
            outcome.trials[tile] = Trial(tile, refusal=result)
        elif result is not None:
            seconds[tile] = result
    if outcome.anchor is None and raced[0] in found:
        outcome.anchor = outcome.best = next(iter(seconds), None)
    anchor, best = outcome.anchor, outcome.best
    if anchor is None or best is None:
        return len(found) == len(raced)
    if anchor not in seconds or best not in seconds:
        return False
    for tile, taken in seconds.items():
        ratio = taken / seconds[anchor]
        outcome.trials[tile] = Trial(tile, taken, ratio)
    quickest = min(seconds, key=lambda tile: seconds[tile])
    if seconds[quickest] < (1 - GAIN) * seconds[best]:
        outcome.best = quickest
    return len(found) == len(raced)


def settle(
    outcome: Outcome, confirm: Callable[[Tile], Refusal | None], /
) -> Tile | None:
    """Returns the best tile that is confirmed, or None; the others become refusals.

    Where the best is not, the next ones are asked, by their ratio.
    """
    for tile in outcome.ranking():
        refusal = confirm(tile)
        if refusal is None:
            return tile
        outcome.trials[tile] = Trial(tile, refusal=refusal)
    return None
