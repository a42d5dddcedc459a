"""Checks of a config's fields: each raises ValueError that names the field, says what
is wanted and what came."""

from typing import Any

_LARGEST_COUNT = 2**31 - 1  # sizes are int32 on a device
_FLOAT32_RANGE = (2.0**-126, 3.4e38)  # outside of it a number is 0 or infinite there


def check_count(config: Any, name: str, /) -> None:
    """Returns nothing; the field is an integer from 1 to 2^31 - 1."""
    value = getattr(config, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(
            f"{_field(config, name)} must be an integer >= 1, got {value!r}"
        )
    if value > _LARGEST_COUNT:
        raise ValueError(
            f"{_field(config, name)} must be an integer < 2**31, got {value!r}"
        )


def check_optional_counts(config: Any, *names: str) -> None:
    """Returns nothing; each field is None or an integer of at least 1."""
    for name in names:
        if getattr(config, name) is not None:
            check_count(config, name)


def check_positive(config: Any, name: str, /) -> None:
    """Returns nothing; the field is a finite number above 0."""
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    smallest, largest = _FLOAT32_RANGE
    if not number or not smallest <= value <= largest:
        raise ValueError(
            f"{_field(config, name)} must be a finite number > 0 that float32 holds, "
            f"got {value!r}"
        )


def check_switch(config: Any, name: str, /) -> None:
    """Returns nothing; the field is True or False."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ValueError(f"{_field(config, name)} must be True or False, got {value!r}")


def check_choice(config: Any, name: str, choices: tuple[Any, ...], /) -> None:
    """Returns nothing; the field is one of the choices."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(
            f"{_field(config, name)} must be one of {choices}, got {value!r}"
        )


def check_part(config: Any, name: str, part: type, /) -> None:
    """Returns nothing; the field is an instance of the given dataclass."""
    value = getattr(config, name)
    if not isinstance(value, part):
        raise ValueError(
            f"{_field(config, name)} must be a {part.__name__}, got {value!r}"
        )


def _field(config: Any, name: str) -> str:
    return f"{type(config).__name__}.{name}"
