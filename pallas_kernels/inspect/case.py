"""A call that the inspection compiles."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """A function that runs one kernel or several, and the shapes of its arguments.

    Each operation lists its own: `shipped()` in the `shipped.py` of its folder.
    """

    name: str  # "width 128, bfloat16, segments, short window"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]  # trees of jax.ShapeDtypeStruct
