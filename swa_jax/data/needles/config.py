"""The kinds of needle tests, as data."""

from dataclasses import dataclass
from typing import Literal, get_args

Haystack = Literal["repeated", "text"]
ValueKind = Literal["word", "number", "uuid"]

MAX_NEEDLES = 64


@dataclass(frozen=True)
class NeedleConfig:
    """How hard it is to find what is asked. Raises ValueError for a bad field."""

    haystack: Haystack = "text"
    """What surrounds the needles: the same few sentences again and again, or text."""
    values: ValueKind = "number"
    """What a value is: two words, a number, or a random UUID (version 4)."""
    digits: int = 7
    """Digits of a number."""
    keys: int = 1
    """Keys with a needle in the haystack; one of them is asked for."""
    values_per_key: int = 1
    """Values of the key that is asked for, each in a needle of its own; all count."""

    def __post_init__(self) -> None:
        for name, kinds in {"haystack": Haystack, "values": ValueKind}.items():
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"NeedleConfig.{name} must be one of {get_args(kinds)}, got "
                    f"{getattr(self, name)!r}"
                )
        limits = {"digits": 18, "keys": MAX_NEEDLES, "values_per_key": MAX_NEEDLES}
        for name, most in limits.items():
            count = getattr(self, name)
            if type(count) is not int or not 1 <= count <= most:
                raise ValueError(
                    f"NeedleConfig.{name} must be an integer from 1 to {most}, got "
                    f"{count!r}"
                )
        different = 9 * 10 ** (self.digits - 1)
        if self.values == "number" and different < self.keys + self.values_per_key - 1:
            raise ValueError(
                f"NeedleConfig: there are {different} numbers of {self.digits} digits, "
                f"too few for {self.keys} keys and {self.values_per_key} values of one"
            )


KINDS: dict[str, NeedleConfig] = {
    "single_1": NeedleConfig(haystack="repeated"),
    "single_2": NeedleConfig(),
    "single_3": NeedleConfig(values="uuid"),
    "multi_key": NeedleConfig(keys=4),
    "multi_value": NeedleConfig(values_per_key=4),
}
"""RULER's tests of retrieval, by their names there; single_1 is the easiest."""
