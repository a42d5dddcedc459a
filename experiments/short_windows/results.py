"""The numbers of the experiment: lines of JSON, for each run and each finished cell."""

import dataclasses
from typing import Any

from experiments.sweep.table import Table

from .config import Cell, Size


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trained cell came to.

    Attributes:
        steps: of training.
        curve: means over equal parts of the steps: nats of an answer, nats of a token
            of code, share of right answers.
        needles: of `test_needles`.
        code: of `test_code`.
        training_seconds: with compilation; cells may run beside each other.
        seconds: with the tests.
    """

    steps: int
    curve: list[list[float | None]]
    needles: list[dict[str, Any]]
    code: list[dict[str, Any]]
    training_seconds: float
    seconds: float


class Results(Table[Size, Cell, Outcome]):
    """The finished cells of a size."""

    size_type, cell_type, outcome_type = Size, Cell, Outcome
    chosen = ("arms", "seeds")
