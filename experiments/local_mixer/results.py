"""The numbers of a grid: lines of JSON, one for each run and each finished cell."""

import dataclasses

from experiments.sweep.table import Table

from .config import Cell, Size


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trained cell came to.

    Attributes:
        loss: nats per answer (per token of code), on held-out rows; None: diverged.
        accuracy: share of right answers there.
        bits_per_byte: of held-out code; None for the other tasks.
        by_distance: answers and right ones, by the lower edge of the octave of
            distances (tokens).
        curve: training loss, means over equal parts of the steps.
        seconds: of training and test; cells may run beside each other.
    """

    loss: float | None
    accuracy: float
    bits_per_byte: float | None
    by_distance: dict[str, list[int]]
    curve: list[float | None]
    seconds: float


class Results(Table[Size, Cell, Outcome]):
    """The finished cells of a size."""

    size_type, cell_type, outcome_type = Size, Cell, Outcome
    chosen = ("locals", "mixers", "tasks", "seeds")
