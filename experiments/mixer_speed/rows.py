"""The numbers of a run, and what they come to beside each other."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.kernel_speed.cases import Part

from .config import Layer


@dataclasses.dataclass(frozen=True)
class BlockRow:
    """One part of a layer: seconds a call in each round, or why there are none.

    Bytes by XLA's plan of the program, which it allocates as a whole: `argument_bytes`
    of its parameters and inputs, `result_bytes`, `temp_bytes` of all between.
    """

    mixer: str
    local: str
    part: Part
    seconds: tuple[float, ...] = ()
    argument_bytes: int | None = None
    result_bytes: int | None = None
    temp_bytes: int | None = None
    failure: str | None = None

    @property
    def layer(self) -> Layer:
        """The pair of mixers."""
        return Layer(self.mixer, self.local)

    @property
    def held_bytes(self) -> int | None:
        """What a call holds; None where it did not compile."""
        parts = (self.argument_bytes, self.result_bytes, self.temp_bytes)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


@dataclasses.dataclass(frozen=True)
class StepRow:
    """A model's training step: seconds a step in each round, or why there are none.

    `bytes`: what a step holds by XLA's plan; `loss` (nats/token) of the last step.
    """

    mixer: str
    local: str
    layers: int
    seconds: tuple[float, ...] = ()
    bytes: int | None = None
    loss: float | None = None
    failure: str | None = None

    @property
    def layer(self) -> Layer:
        """The pair of mixers of every layer."""
        return Layer(self.mixer, self.local)


class Spread(NamedTuple):
    """The median of the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float], /) -> Spread | None:
    """Returns median and quartiles; None of no values."""
    found = list(values)
    if len(found) < 2:
        return Spread(*found * 3) if found else None
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(seconds: Sequence[float], others: Sequence[float], /) -> Spread | None:
    """Returns the spread of seconds / others within a round; None where one has none.

    Both were read in turns; one that failed in a later round has fewer.
    """
    return spread(a / b for a, b in zip(seconds, others, strict=False))


def extra(seconds: Sequence[float], others: Sequence[float], /) -> Spread | None:
    """Returns what the first takes longer than the second, as a share of it."""
    found = ratio(seconds, others)
    return None if found is None else Spread(*(value - 1.0 for value in found))
