"""What the configs of all tasks check."""

from typing import Any


def check_count(config: Any, name: str, minimum: int = 1, /) -> None:
    """Returns nothing; raises ValueError for a field that is no integer >= minimum."""
    value = getattr(config, name)
    if type(value) is not int or value < minimum:
        raise ValueError(
            f"{type(config).__name__}.{name} must be an integer >= {minimum}, "
            f"got {value!r}"
        )


def check_choice(config: Any, name: str, choices: tuple[Any, ...], /) -> None:
    """Returns nothing; raises ValueError for a field that is none of the choices."""
    value = getattr(config, name)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(
            f"{type(config).__name__}.{name} must be one of {choices}, got {value!r}"
        )
