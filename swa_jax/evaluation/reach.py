"""How far stacked windows see, in closed form, in the averaging model.

    h_l(t) = alpha h_{l-1}(t) + (1 - alpha) mean_{0 <= j < W} h_{l-1}(t - j)

for l = 1 ... L. What an output owes to the input d tokens before it is one number, the
influence at distance d; over all d the numbers sum to 1. A path takes at every layer
either its own token (weight alpha) or a hop within the window (1 - alpha), so that the
number of hops is Binomial(L, 1 - alpha), and k hops add up k distances that are uniform
on 0 ... W - 1. The rules of thumb beside the exact form are those of Xiao, "Why
Stacking Sliding Windows Can't See Very Far".

Whole stacks at a position that has all its past; NumPy alone, no JAX.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 2**31  # of layers and window together
MOST_WORK = 2**31  # additions that make one distribution, some seconds


@dataclass(frozen=True)
class AveragingStack:
    """The averaging model of L layers, with a window W and a residual weight alpha.

    Attributes:
        layers: number L of layers.
        window: W (tokens), the reading token included.
        alpha: share of a layer's output that is its own input, from 0 (no residual
            path) to 1 (no attention).
    """

    layers: int
    window: int
    alpha: float

    def __post_init__(self) -> None:
        if self.layers < 1 or self.window < 1:
            raise ValueError(
                "a stack wants layers and a window (tokens) of at least 1, got "
                f"layers={self.layers}, window={self.window}"
            )
        if self.layers * self.window > MOST_TOKENS:
            raise ValueError(
                f"a stack wants layers times window of at most {MOST_TOKENS} tokens, "
                f"got layers={self.layers}, window={self.window}"
            )
        if not 0.0 <= self.alpha <= 1.0:  # nor is NaN
            raise ValueError(
                "alpha, the share of a layer's output that is its own input, is "
                f"within [0, 1]; got {self.alpha}"
            )

    @property
    def farthest(self) -> int:
        """The largest distance (tokens) with any influence: L (W - 1), as W counts the
        reading token, which is no step back."""
        return self.layers * (self.window - 1)

    @property
    def reach(self) -> int:
        """The tokens with any influence, the output's own included: L (W - 1) + 1."""
        return self.farthest + 1

    @property
    def rounded_reach(self) -> int:
        """The article's L W (tokens), which takes a window for a step of W."""
        return self.layers * self.window

    @property
    def mean_hops(self) -> float:
        """The mean number of layers at which a path hops: L (1 - alpha)."""
        return self.layers * (1.0 - self.alpha)

    @property
    def diffusive_spread(self) -> float:
        """The article's standard deviation (tokens) of the distances without residual
        paths, W sqrt(L / 12): a hop taken for uniform on an interval of length W."""
        return self.window * math.sqrt(self.layers / 12)

    @property
    def spread_without_residual(self) -> float:
        """The same exactly, sqrt(L (W^2 - 1) / 12): uniform on W whole numbers."""
        return math.sqrt(self.layers * (self.window**2 - 1) / 12)

    @property
    def mean_distance(self) -> float:
        """The mean distance (tokens) of the influence: L (1 - alpha) (W - 1) / 2."""
        return self.mean_hops * (self.window - 1) / 2

    @property
    def spread(self) -> float:
        """The standard deviation (tokens) of the distances at this alpha.

        A layer's distance is 0 or, with probability 1 - alpha, uniform:
        sqrt(L ((1 - alpha) E[u^2] - ((1 - alpha) E[u])^2)), u on 0 ... W - 1.
        """
        share, last = 1.0 - self.alpha, self.window - 1
        square = share * last * (2 * last + 1) / 6
        return math.sqrt(self.layers * max(square - (share * last / 2) ** 2, 0.0))

    def influence(self) -> NDArray[np.float64]:
        """The influence at the distances 0 ... L (W - 1), whose sum is 1:

            sum_k Binomial(L, k) alpha^(L - k) (1 - alpha)^k U_W^{*k}(d)

        Every term is positive: far tails keep their digits. Raises ValueError for a
        stack that is too large to add up.
        """
        hops = walks(self.layers, self.window)
        weights = binomial(self.layers, 1.0 - self.alpha)
        found = np.zeros(self.reach)
        for weight, walk in zip(weights, hops, strict=True):
            found[: len(walk)] += weight * walk
        return found

    def single_path(self, distance: int, /) -> float:
        """The article's bound on what comes from a distance (tokens) or beyond,
        (1 - alpha)^ceil(d / W): one path, of as few hops as possible."""
        return (1.0 - self.alpha) ** -(-distance // self.window)

    def single_path_horizon(self, tolerance: float, /) -> float:
        """The distance (tokens) at which (1 - alpha)^(d / W) is the tolerance:
        W ln(tolerance) / ln(1 - alpha), whatever the depth; infinite at alpha = 0,
        0 at alpha = 1."""
        check_tolerance(tolerance)
        if self.alpha in (0.0, 1.0):
            return math.inf if self.alpha == 0.0 else 0.0
        return self.window * math.log(tolerance) / math.log1p(-self.alpha)

    def horizon(self, tolerance: float, /) -> int:
        """The smallest distance d (tokens) such that less than the tolerance of all the
        influence comes from d or beyond, by the exact form."""
        return horizon_of(tail(self.influence()), tolerance)


def binomial(count: int, probability: float, /) -> NDArray[np.float64]:
    """The probabilities of 0 ... count successes, without overflow at large counts."""
    if probability in (0.0, 1.0):
        return np.eye(count + 1)[count if probability else 0]
    k = np.arange(count + 1)
    factorials = np.array([math.lgamma(n + 1) for n in range(count + 1)])
    logs = factorials[count] - factorials[k] - factorials[count - k]
    logs += k * math.log(probability) + (count - k) * math.log1p(-probability)
    return np.exp(logs)


def walks(layers: int, window: int, /) -> Iterator[NDArray[np.float64]]:
    """The distributions of the distance after k = 0 ... L hops, each uniform on
    0 ... W - 1: U_W^{*k} on the distances 0 ... k (W - 1).

    Raises ValueError, at once, for more than can be added up soon.
    """
    reach = layers * (window - 1) + 1
    if layers * reach * window.bit_length() > MOST_WORK:
        raise ValueError(
            f"the exact distribution over {reach} tokens of {layers} layers takes too "
            "long to add up; give fewer layers or a smaller window"
        )
    return _walks(layers, window)


def _walks(layers: int, window: int) -> Iterator[NDArray[np.float64]]:
    walk = np.ones(1)
    yield walk
    for _ in range(layers):
        walk = _window_sums(walk, window) / window
        yield walk


def independent_paths(gains: Sequence[float], window: int, /) -> NDArray[np.float64]:
    """The influence at the distances 0 ... L (W - 1), up to one factor, where the paths
    of different layers add up like independent vectors:

        sqrt( sum_k e_k(g_1^2 ... g_L^2) U_W^{*k}(d)^2 )

    with g the gain of each layer's hop over its own path and e_k the elementary
    symmetric polynomial. It is E ||J||_F^2 of the product over layers of I + M_l A,
    A the mean over the window and M_l independent random matrices of squared norm
    g_l^2 D: hops of the same layers go through the same matrices whichever tokens they
    touch, and add; hops of other layers are at right angles. Raises ValueError for
    gains that are negative or no numbers.
    """
    if not all(0.0 <= gain < math.inf for gain in gains):
        raise ValueError(f"gains of hops are at least 0 and finite, got {list(gains)}")
    symmetric = np.ones(1)
    for gain in gains:
        grown = np.append(symmetric, 0.0)
        grown[1:] += symmetric * gain**2
        symmetric = grown
    squares = np.zeros(len(gains) * (window - 1) + 1)
    for weight, walk in zip(symmetric, walks(len(gains), window), strict=True):
        squares[: len(walk)] += weight * walk**2
    return np.sqrt(squares)


def tail(influence: NDArray[np.floating], /) -> NDArray[np.float64]:
    """The share of all the influence that comes from each distance or beyond: 1 at
    distance 0. Raises ValueError where there is no influence at all."""
    sums = np.cumsum(np.asarray(influence, np.float64)[::-1])[::-1]
    if not len(sums) or not sums[0] > 0.0:
        raise ValueError("wanted influence above zero at some distance, got none")
    return sums / sums[0]


def horizon_of(tail_of_distance: NDArray[np.floating], tolerance: float, /) -> int:
    """The smallest distance (tokens) whose tail is below the tolerance; their number,
    where none of those given is."""
    check_tolerance(tolerance)
    return int(np.count_nonzero(np.asarray(tail_of_distance) >= tolerance))


def check_tolerance(tolerance: float, /) -> None:
    """Returns nothing; raises ValueError for what is no share between 0 and 1."""
    if not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"the tolerance is a share between 0 and 1, both excluded; got {tolerance}"
        )


def _window_sums(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The sums over every window, the ragged ones at both ends too.

    Made of sums over powers of two, so that nothing is ever subtracted: the smallest
    number of a tail is as exact as the largest.
    """
    length = len(values) + window - 1
    power = np.zeros(length)
    power[: len(values)] = values
    sums, covered, width = np.zeros(length), 0, 1
    while width <= window:
        if window & width:
            sums[covered:] += power[: length - covered]
            covered += width
        doubled = power.copy()
        doubled[width:] += power[: max(length - width, 0)]
        power, width = doubled, 2 * width
    return sums
