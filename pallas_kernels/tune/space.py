"""What a search may choose from, the most promising first; nothing here compiles."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

# What one search chooses: a NamedTuple of whole numbers, `warps` and `stages` among
# them.
Candidate = tuple[int, ...]
Place = tuple[float, ...]


class Limits(NamedTuple):
    """What a block of threads may have on the device; the default is a Hopper's."""

    shared_memory: int = 232_448  # bytes


HOPPER = Limits()

# A move changes the logarithms of two sides of a block and of the warps, and the
# stages. A larger block wants more warps, and sides are traded: these move together.
SINGLE = [tuple(int(i == axis) for i in range(4)) for axis in range(4)]
PAIRED = [(1, 0, 1, 0), (0, 1, 1, 0), (1, -1, 0, 0)]
MOVES = SINGLE + PAIRED


def grid_place(candidate: Any, /) -> Place:
    """Returns where two sides, warps and stages lie on the grid that MOVES go along."""
    first, second, warps, stages = candidate
    return (math.log2(first), math.log2(second), math.log2(warps), float(stages))


class Space(NamedTuple):
    """The candidates, the default first and then by their distance from it.

    A move leads from a candidate to one whose place differs by it, there or back.
    `landmarks` are raced first, so that a descent does not end beside the default where
    a far candidate is faster.
    """

    candidates: Sequence[Any]
    place: Callable[[Any], Place]
    moves: Sequence[tuple[int, ...]]
    landmarks: Sequence[Any]

    def around(self, candidate: Any) -> list[Any]:
        """Returns the candidates that are one move away."""
        here, moves = self.place(candidate), set(self.moves)
        there = {other: self.place(other) for other in self.candidates}
        return [
            other
            for other, place in there.items()
            if _steps(here, place) in moves or _steps(place, here) in moves
        ]


def make_space(
    default: Any,
    candidates: Iterable[Any],
    /,
    *,
    fits: Callable[[Any], bool],
    place: Callable[[Any], Place] = grid_place,
    moves: Sequence[tuple[int, ...]] = MOVES,
    landmarks: Sequence[Any] = (),
) -> Space:
    """Returns the space of the candidates that fit, and of the default in any case."""
    kept = {candidate for candidate in candidates if fits(candidate)} - {default}
    origin = place(default)
    apart = {other: sum(map(abs, _steps(origin, place(other)))) for other in kept}
    others = sorted(kept, key=lambda other: (apart[other], other))
    known = {default, *kept}
    landmarks = [candidate for candidate in landmarks if candidate in known]
    return Space([default, *others], place, moves, landmarks)


def _steps(start: Place, end: Place) -> Place:
    """Returns the difference of two places."""
    return tuple(b - a for a, b in zip(start, end, strict=True))
