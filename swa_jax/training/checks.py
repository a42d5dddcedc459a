"""What the fields of training's configurations may hold."""

from collections.abc import Sequence
from typing import Any

LARGEST_COUNT = 2**31 - 1  # steps, tokens and sizes are int32 on a device
SMALLEST_FLOAT32 = 2.0**-126  # a smaller number is 0 on a device


def check_at_least(config: Any, minimum: int, /, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        field = f"{type(config).__name__}.{name}"
        if type(value) is not int or value < minimum:
            raise ValueError(f"{field} must be an integer >= {minimum}, got {value!r}")
        if value > LARGEST_COUNT:
            raise ValueError(f"{field} must be an integer < 2**31, got {value!r}")


def check_within(config: Any, name: str, low: float, high: float, /) -> None:
    value = getattr(config, name)
    number = type(value) in (int, float) and low <= value <= high
    if not number or 0 < abs(value) < SMALLEST_FLOAT32:
        raise ValueError(
            f"{type(config).__name__}.{name} must be a number from {low:g} to "
            f"{high:g} that float32 holds, got {value!r}"
        )


def check_sequence(config: Any, name: str, /) -> None:
    value = getattr(config, name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(
            f"{type(config).__name__}.{name} must be a tuple, got {value!r}"
        )
