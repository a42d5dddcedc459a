"""A call that tiles are tuned on, as every operation gives one to the tuner."""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

DTYPES = {  # name -> bytes and precision of the rows of a table
    "bfloat16": (2, False),
    "float32": (4, False),
    "float32-highest": (4, True),
}
ROTATED_BYTES = 128_000_000  # inputs rotate through more than an L2 cache holds
MOST_SETS = 8


def dtype_name(key: Any, /) -> str:
    """Returns the name of a row's dtype, as DTYPES has it."""
    names = {numbers: name for name, numbers in DTYPES.items()}
    return names[key.bytes, key.precise]


class Call(NamedTuple):
    """A function operands -> {name: result}; calls of one identity compile alike.

    The kernel that is searched may not spill registers. Others within may, or what XLA
    adds: they have their own search, or none.
    """

    identity: Hashable
    function: Callable[[Any], dict[str, jax.Array]]
    kernel: str  # by its name in the program


class Right(NamedTuple):
    """A result as it should be, in float32.

    Errors are relative to its largest number, or `absolute`: of a logarithm, whose
    error is the relative error of what it is of.
    """

    array: jax.Array
    absolute: bool = False


class Problem(Protocol):
    """A call of one row of the table: what runs, on what, with which results."""

    def call(self, kernel: str, tiles: Any, /) -> Call:
        """Returns what is compiled and timed for a kernel, with these tiles."""
        ...

    def operands(self, kernel: str, before: Callable[..., Any] | None, /) -> list[Any]:
        """Returns the sets of operands that calls rotate through, with the results of
        the compiled call `before`, if the operation names one."""
        ...

    def wanted(self, kernel: str, /) -> dict[str, Right]:
        """Returns the results for the first set of operands."""
        ...


def rotating(draw: Callable[[int], Any], /) -> list[Any]:
    """Returns draw(0), draw(1), ...: sets of arrays, as many as are to rotate."""
    first = draw(0)
    occupied = sum(x.nbytes for x in jax.tree.leaves(first))
    count = min(MOST_SETS, math.ceil(ROTATED_BYTES / occupied))
    return [first, *(draw(number) for number in range(1, count))]


def wide(array: jax.Array, /) -> jax.Array:
    """Returns an array of numbers in float32."""
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.float32) if floating else array
