"""Sums over octaves of distances, and what they come to."""

import numpy as np
from numpy.typing import NDArray


def octave_edges(longest: int, /) -> tuple[int, ...]:
    """Returns the edges 1, 2, 4 ..., the last one above `longest`."""
    return tuple(1 << power for power in range(longest.bit_length() + 1))


def sums_by_bin(
    distances: NDArray[np.integer],
    values: NDArray[np.floating] | NDArray[np.bool_],
    edges: tuple[int, ...],
    /,
) -> NDArray[np.float64]:
    """Returns the sum of the values whose distances lie in [edges[j], edges[j + 1])."""
    bins = np.searchsorted(edges, distances, "right") - 1
    sums = np.bincount(bins, values.astype(np.float64), len(edges) - 1)
    return sums.astype(np.float64)


def means(sums: NDArray[np.float64], counts: NDArray[np.float64], /) -> list:
    """Returns the mean of each bin, None for one that is empty."""
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return [total / count if count else None for total, count in pairs]
