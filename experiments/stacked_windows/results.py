"""The numbers of a grid: lines of JSON, one for each run and each finished cell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.sweep.table import Table

from .config import Cell, Design, Size


@dataclasses.dataclass(frozen=True)
class Stack:
    """The measured influence on a row's last token, and what the formulas say of it.

    Attributes:
        distances: some of the distances (tokens), 0 first.
        tail: share of the influence from each of them or beyond.
        mean: distance (tokens) of the influence.
        spread: standard deviation (tokens) of that distance.
        horizon: smallest distance (tokens) with a tail below the size's tolerance.
        horizons: the same by each formula.
        errors: of each formula, mean of |log10(formula / measured)| over tails.
        beyond_reach: share of the influence from beyond what the windows reach.
    """

    distances: tuple[int, ...]
    tail: tuple[float, ...]
    mean: float
    spread: float
    horizon: int
    horizons: dict[str, int]
    errors: dict[str, float]
    beyond_reach: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        stack: of the whole model.
        branches: of its branches without residual paths.
        alpha_jacobian: of each layer with a window, by its Jacobian.
        alpha_stream: of the same, by the lengths of stream and branch.
        gains: of the same, hop over own path; None: nothing is left of the own path.
        loss: training loss (nats/byte) of the last tenth of the steps; None: untrained.
        steps: of training.
        seconds: of training and measuring; cells may run beside each other.
    """

    stack: Stack
    branches: Stack
    alpha_jacobian: tuple[float, ...]
    alpha_stream: tuple[float, ...]
    gains: tuple[float | None, ...]
    loss: float | None
    steps: int
    seconds: float


class Results(Table[Size, Cell, Outcome]):
    """The finished cells of a size."""

    size_type, cell_type, outcome_type = Size, Cell, Outcome
    chosen = ("random", "trained", "seeds")

    @classmethod
    def outcome_of(cls, values: Mapping[str, Any], /) -> Outcome:
        """The outcome that JSON has kept."""
        fields = _with_tuples(values)
        for name in ("stack", "branches"):
            fields[name] = Stack(**_with_tuples(values[name]))
        return Outcome(**fields)

    def of(self, state: str, design: Design, /) -> list[Outcome]:
        """The outcomes of a design in a state, one for each finished seed."""
        return [
            outcome
            for cell, outcome in self.outcomes.items()
            if (cell.state, cell.design) == (state, design)
        ]


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {n: tuple(x) if isinstance(x, list) else x for n, x in values.items()}
