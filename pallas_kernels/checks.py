"""Checks of array arguments at the public border of an operation."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def check_shapes(operation: str, arrays: Mapping[str, jax.Array | None], /) -> dict:
    """Returns the size of each dimension letter of arrays named in shape notation.

    The letters behind the underscore of a name (`q_BTNH`) are its dimensions; the same
    letter has the same size everywhere. Arrays that are None are passed over.

    Raises:
      ValueError: a wrong rank, a size that contradicts an earlier one, or a size of 0.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if array is None:
            continue
        letters = name.rsplit("_", 1)[1]
        if jnp.ndim(array) != len(letters):
            raise ValueError(
                f"{operation} wants {name} with the {len(letters)} dimensions "
                f"{letters}; got shape {jnp.shape(array)}."
            )
        for letter, size in zip(letters, jnp.shape(array), strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{operation}: {name} has {letter} = {size}, an earlier array has "
                    f"{letter} = {sizes[letter]}; got shape {jnp.shape(array)}."
                )
            if size == 0 and letter in "BTSNKHPDC":
                raise ValueError(
                    f"{operation} wants every dimension of {name} to be at least 1; "
                    f"got shape {jnp.shape(array)}."
                )
    return sizes


def check_floating(operation: str, arrays: Mapping[str, jax.Array | None], /) -> None:
    """Returns nothing; every given array has a floating dtype, and all have the same.

    Raises:
      ValueError: an integer or boolean array, or arrays of different dtypes.
    """
    dtypes = {n: jnp.result_type(a) for n, a in arrays.items() if a is not None}
    for name, dtype in dtypes.items():
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{operation} wants {name} in a floating dtype; got {dtype}."
            )
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"{operation} wants arrays of one dtype; got {found}.")


def check_segment_ids(
    operation: str, name: str, segment_ids: jax.Array | None, shape: tuple[int, ...], /
) -> None:
    """Returns nothing; the segment ids, if given, are integers of the wanted shape.

    Raises:
      ValueError: another dtype or shape.
    """
    if segment_ids is None:
        return
    if not jnp.issubdtype(jnp.result_type(segment_ids), jnp.integer):
        raise ValueError(
            f"{operation} wants {name} in an integer dtype; "
            f"got {jnp.result_type(segment_ids)}."
        )
    if jnp.shape(segment_ids) != shape:
        raise ValueError(
            f"{operation} wants {name} of shape {shape}; got {jnp.shape(segment_ids)}."
        )


def check_window(operation: str, window: int | jax.Array | None, /) -> None:
    """Returns nothing; the window is a count of tokens, or None.

    Raises:
      ValueError: anything else; the value of a traced window is not looked at.
    """
    if window is None:
        return
    whole = jnp.issubdtype(jnp.result_type(window), jnp.integer)
    if isinstance(window, bool) or not whole or jnp.ndim(window) != 0:
        raise ValueError(
            f"{operation} wants window as an integer number of tokens, an integer "
            f"scalar array, or None for no limit; got {window=}."
        )
    if isinstance(window, int | np.integer) and window < 1:
        raise ValueError(
            f"{operation} wants window >= 1 token (1 reads the token itself); "
            f"got {window=}."
        )


def accumulation_dtype(dtype: jax.typing.DTypeLike, /) -> jnp.dtype:
    """Returns the dtype of sums, gates and states: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
