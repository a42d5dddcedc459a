"""What each formula says of a stack's influence, and how far that is from the truth."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from swa_jax.evaluation.influence import PathShares
from swa_jax.evaluation.reach import (
    AveragingStack,
    horizon_of,
    independent_paths,
    tail,
)

FORMULAS: dict[str, str] = {
    "diffusion": "normal, mean L (W - 1) / 2, deviation W sqrt(L / 12)",
    "single_path": "(1 - alpha)^ceil(d / W)",
    "binomial": "exact Binomial form, alpha of the Jacobian",
    "binomial_stream": "exact Binomial form, alpha of the stream",
    "independent": "paths of other layers at right angles, gains of the Jacobian",
}
SMALLEST_TAIL = 1e-4  # of the measured tail that errors are taken over
_FLOOR = 1e-12  # of a formula that says zero


def tails_of(
    shares: Sequence[PathShares], window: int, /
) -> dict[str, NDArray[np.float64]]:
    """Returns, by formula, the share of the influence from each of the distances
    0 ... L (W - 1) or beyond, for a stack of layers with these measures of alpha.

    A formula that takes one alpha for all layers gets their mean. Where a layer leaves
    nothing of its own path, the gains are no numbers and "independent" is left out.
    """
    layers, gains = len(shares), [share.gain for share in shares]
    alpha = _within_one(fmean(share.jacobian for share in shares))
    stream = _within_one(fmean(share.stream for share in shares))
    stack = AveragingStack(layers, window, alpha)
    distances = range(stack.reach)
    found = {
        "diffusion": diffusion_tail(layers, window),
        "single_path": np.array([stack.single_path(d) for d in distances]),
        "binomial": tail(stack.influence()),
        "binomial_stream": tail(AveragingStack(layers, window, stream).influence()),
    }
    if all(map(math.isfinite, gains)):
        found["independent"] = tail(independent_paths(gains, window))
    return found


def diffusion_tail(layers: int, window: int, /) -> NDArray[np.float64]:
    """Returns the tail of the article's diffusion: a normal distribution of mean
    L (W - 1) / 2 and deviation W sqrt(L / 12), cut off at distance 0."""
    stack = AveragingStack(layers, window, 0.0)
    # A distance stands for the interval of half a token to both sides.
    steps = [
        (d - 0.5 - stack.mean_distance) / stack.diffusive_spread
        for d in range(stack.reach)
    ]
    shares = np.array([math.erfc(step / math.sqrt(2)) / 2 for step in steps])
    return shares / shares[0]


def horizons_of(
    tails: Mapping[str, NDArray[np.float64]], tolerance: float, /
) -> dict[str, int]:
    """Returns the horizon (tokens) of every tail."""
    return {name: horizon_of(values, tolerance) for name, values in tails.items()}


def errors_of(
    measured: NDArray[np.float64], tails: Mapping[str, NDArray[np.float64]], /
) -> dict[str, float]:
    """Returns the mean of |log10(formula / measured)| over the distances from 1 token
    on at which the measured tail is at least SMALLEST_TAIL and within every formula."""
    last = min([len(measured), *map(len, tails.values())])
    counted = np.flatnonzero(measured[:last] >= SMALLEST_TAIL)[1:]
    if not len(counted):
        raise ValueError("wanted influence from beyond the own token, got none")
    return {
        name: float(
            np.abs(
                np.log10(np.maximum(values[counted], _FLOOR) / measured[counted])
            ).mean()
        )
        for name, values in tails.items()
    }


def _within_one(alpha: float) -> float:
    return min(max(alpha, 0.0), 1.0)
