"""What the cells come to: recall by distance, the loss on code, over the seeds."""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from .config import Size
from .results import Outcome, Results


class Score(NamedTuple):
    """The mean and the extremes over the seeds."""

    mean: float
    low: float
    high: float


class Distances(NamedTuple):
    """The distances (tokens) from `low` on and below `high`, with their name."""

    name: str
    low: int
    high: float


def ranges(size: Size, /) -> tuple[Distances, ...]:
    """Returns the distances that the largest window reaches, those that only a row of
    training has, and those that it has not."""
    long, row = size.windows[1], size.training.seq_len
    return (
        Distances(f"below {long}", 1, long),
        Distances(f"{long} to {row - 1}", long, row),
        Distances(f"{row} and more", row, math.inf),
    )


def score(
    results: Results, arm: str, value: Callable[[Outcome], float | None], /
) -> Score | None:
    """Returns the score of an arm by a value of its cells; None where none has it."""
    found = [
        value(outcome) for cell, outcome in results.outcomes.items() if cell.arm == arm
    ]
    values = [x for x in found if x is not None]
    if not values:
        return None
    return Score(statistics.fmean(values), min(values), max(values))


def recall(
    outcome: Outcome, window: int, low: float, high: float, /, *, longest: float
) -> float | None:
    """Returns the share of right answers at distances in [low, high), at a window.

    Over all tests of at most `longest` tokens; None where nothing was asked. A model
    without windows was tested once, which counts at every window.
    """
    asked = right = 0
    for test in _at(outcome.needles, window):
        if test["length"] > longest:
            continue
        for edge, (count, correct) in test["octaves"].items():
            if low <= int(edge) < high:
                asked, right = asked + count, right + correct
    return right / asked if asked else None


def recall_by_octave(
    results: Results, arm: str, window: int, /, *, fewest: int = 24
) -> dict[int, Score]:
    """Returns the recall over all lengths, by the lower edge of the octave (tokens).

    Octaves with fewer questions in a seed than `fewest` are left out.
    """
    found = {}
    for edge in _octaves(results, arm, window, fewest):

        def value(outcome: Outcome, edge: int = edge) -> float | None:
            return recall(outcome, window, edge, 2 * edge, longest=math.inf)

        scored = score(results, arm, value)
        if scored is not None:
            found[edge] = scored
    return found


def bits_per_byte(outcome: Outcome, window: int, /) -> float | None:
    """Returns the bits per byte of held-out code at a window."""
    tests = _at(outcome.code, window)
    return tests[0]["bits_per_byte"] if tests else None


def loss_by_position(results: Results, arm: str, window: int, /) -> dict[int, Score]:
    """Returns the loss on code (nats/token), by the lower edge of the position bin."""
    tests = [
        test
        for cell, outcome in results.outcomes.items()
        if cell.arm == arm
        for test in _at(outcome.code, window)
    ]
    if not tests:
        return {}
    edges = tests[0]["position_edges"][:-1]
    columns = zip(*(test["loss_by_position"] for test in tests), strict=True)
    return {
        edge: Score(statistics.fmean(column), min(column), max(column))
        for edge, column in zip(edges, columns, strict=True)
    }


def _octaves(results: Results, arm: str, window: int, fewest: int) -> list[int]:
    asked: dict[int, int] = {}
    seeds = [x for cell, x in results.outcomes.items() if cell.arm == arm]
    for outcome in seeds[:1]:
        for test in _at(outcome.needles, window):
            for edge, (count, _) in test["octaves"].items():
                asked[int(edge)] = asked.get(int(edge), 0) + count
    return sorted(edge for edge, count in asked.items() if count >= fewest)


def _at(tests: list[dict[str, Any]], window: int) -> list[dict[str, Any]]:
    """Returns the tests at a window: all, where a model was tested at one alone."""
    if len({test["window"] for test in tests}) == 1:
        return tests
    return [test for test in tests if test["window"] == window]
