"""Checks of a config's fields: each raises ValueError that names the field, says what
is wanted and what came."""

from typing import Any


def check_count(config: Any, name: str, /) -> None:
    """Returns nothing; the field is an integer of at least 1."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{_field(config, name)} must be an integer >= 1, got {value!r}"
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
    if not number or not 0 < value < float("inf"):
        raise ValueError(
            f"{_field(config, name)} must be a finite number > 0, got {value!r}"
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
