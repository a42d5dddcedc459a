"""What the cells come to: scores over the seeds, and how pairs of mixers compare."""

import statistics
from typing import Literal, NamedTuple

from .config import Task
from .results import Outcome, Results

NAMES: dict[Task, str] = {
    "recall": "accuracy of recall",
    "copy": "accuracy of selective copying",
    "code": "bits per byte of code",
}
Verdict = Literal["better", "worse", "no difference"]


class Score(NamedTuple):
    """The mean and the extremes over the seeds; a diverged seed counts as infinite."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two local mixers in front of the same global one, on one task.

    `gain`: mean of the first over that of the second, as far as it is better.
    """

    task: Task
    mixer: str
    first: str
    second: str
    gain: float
    verdict: Verdict


def outcomes_of(results: Results, task: Task, local: str, mixer: str) -> list[Outcome]:
    """Returns the outcomes of a pair of mixers, one for each finished seed."""
    return [
        outcome
        for cell, outcome in results.outcomes.items()
        if (cell.task, cell.local, cell.mixer) == (task, local, mixer)
    ]


def score(results: Results, task: Task, local: str, mixer: str, /) -> Score | None:
    """Returns the score of a pair of mixers, None where no seed is finished."""
    outcomes = outcomes_of(results, task, local, mixer)
    return _score([_value(task, outcome) for outcome in outcomes])


def accuracy_by_distance(
    results: Results, task: Task, local: str, mixer: str, /
) -> dict[int, Score]:
    """Returns the accuracies, by the lower edge of the octave of distances (tokens)."""
    outcomes = outcomes_of(results, task, local, mixer)
    edges = sorted({int(edge) for outcome in outcomes for edge in outcome.by_distance})
    found = {}
    for edge in edges:
        counts = [outcome.by_distance[str(edge)] for outcome in outcomes]
        found[edge] = _score([right / asked for asked, right in counts])
    return found


def comparisons(results: Results, first: str, second: str, /) -> list[Comparison]:
    """Returns how one local mixer compares with another, wherever both are finished.

    It is better (worse) where its worst (best) seed is better (worse) than every seed
    of the other: with three seeds each, one case in twenty if nothing but chance is at
    work.
    """
    found = []
    for task in results.size.tasks:
        for mixer in results.size.mixers:
            one = score(results, task, first, mixer)
            other = score(results, task, second, mixer)
            if one is None or other is None:
                continue
            gain, verdict = _compare(task, one, other)
            found.append(Comparison(task, mixer, first, second, gain, verdict))
    return found


def _compare(task: Task, one: Score, other: Score) -> tuple[float, Verdict]:
    if task == "code":  # less is better
        one, other = (Score(-s.mean, -s.high, -s.low) for s in (one, other))
    verdict: Verdict = "no difference"
    if one.low > other.high:
        verdict = "better"
    if one.high < other.low:
        verdict = "worse"
    return one.mean - other.mean, verdict


def _value(task: Task, outcome: Outcome) -> float:
    if task != "code":
        return outcome.accuracy
    bits = outcome.bits_per_byte
    return float("inf") if bits is None else bits


def _score(values: list[float]) -> Score | None:
    if not values:
        return None
    return Score(statistics.fmean(values), min(values), max(values))
