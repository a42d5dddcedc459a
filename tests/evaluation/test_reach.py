"""The closed forms of stacked windows, against powers of the averaging operator."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_jax.evaluation.reach import (
    AveragingStack,
    binomial,
    horizon_of,
    tail,
    walks,
)


def by_matrix_power(stack):
    """Returns the last row of the averaging operator's L-th power, by distance."""
    size = stack.reach + stack.window
    operator = np.zeros((size, size))
    for t in range(size):
        read = range(max(0, t - stack.window + 1), t + 1)
        operator[t, list(read)] += (1 - stack.alpha) / stack.window
        operator[t, t] += stack.alpha
    return np.linalg.matrix_power(operator, stack.layers)[-1][::-1]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize(("layers", "window"), [(1, 1), (1, 6), (5, 1), (7, 8), (4, 5)])
def test_the_binomial_form_is_the_operators_power(layers, window, alpha):
    stack = AveragingStack(layers, window, alpha)
    wanted = by_matrix_power(stack)
    found = stack.influence()
    assert len(found) == stack.reach == layers * (window - 1) + 1
    assert np.abs(found - wanted[: stack.reach]).max() < 1e-12
    assert not wanted[stack.reach :].any()


def test_the_farthest_token_has_the_influence_of_its_one_path():
    stack = AveragingStack(12, 16, 0.9)
    assert stack.influence()[-1] == pytest.approx((0.1 / 16) ** 12, rel=1e-10)


@given(st.integers(1, 12), st.integers(1, 20), st.floats(0, 1))
@settings(max_examples=60)
def test_mean_and_spread_are_those_of_the_distribution(layers, window, alpha):
    stack = AveragingStack(layers, window, alpha)
    influence, distances = stack.influence(), np.arange(stack.reach)
    mean = influence @ distances
    variance = influence @ (distances - mean) ** 2
    assert influence.sum() == pytest.approx(1, abs=1e-12)
    assert stack.mean_distance == pytest.approx(mean, abs=1e-9)
    assert stack.spread**2 == pytest.approx(variance, abs=1e-7)


def test_without_residual_paths_the_spread_is_diffusive():
    stack = AveragingStack(100, 100, 0.0)
    assert stack.diffusive_spread == pytest.approx(288.675, rel=1e-5)
    assert stack.spread == pytest.approx(stack.spread_without_residual, rel=1e-12)
    assert stack.spread == pytest.approx(stack.diffusive_spread, rel=1e-4)
    assert stack.mean_hops == 100
    assert AveragingStack(3, 10, 0.0).influence().argmax() in (13, 14)


def test_the_ends_of_alpha():
    none, all_own = AveragingStack(6, 4, 0.0), AveragingStack(6, 4, 1.0)
    assert none.single_path_horizon(0.01) == math.inf
    assert none.single_path(1000) == 1.0
    assert all_own.influence().tolist() == [1.0, *[0.0] * 18]
    assert all_own.single_path_horizon(0.01) == 0.0
    assert all_own.horizon(0.01) == 1  # nothing comes from one token away
    assert (all_own.mean_hops, all_own.spread) == (0.0, 0.0)


def test_the_articles_numbers():
    stack = AveragingStack(24, 100, 0.95)
    bounds = [stack.single_path(d) for d in (0, 1, 100, 101, 300)]
    assert bounds == pytest.approx([1, 0.05, 0.05, 0.0025, 0.000125])
    assert stack.single_path_horizon(0.01) == pytest.approx(153.7, abs=0.1)
    assert stack.mean_hops == pytest.approx(1.2)
    assert (stack.rounded_reach, stack.reach) == (2400, 2377)


def test_one_path_is_no_bound_of_all_paths():
    shallow, deep = AveragingStack(1, 16, 0.95), AveragingStack(24, 16, 0.95)
    assert tail(shallow.influence())[1] < shallow.single_path(1)
    assert tail(deep.influence())[1] > deep.single_path(1)


@pytest.mark.parametrize("window", [2, 16])
def test_a_horizon_shrinks_with_tolerance_and_alpha_and_grows_with_depth(window):
    alphas, tolerances = (0.0, 0.3, 0.9, 0.99), (0.3, 0.1, 0.01, 1e-6)
    for layers in (1, 5, 20):
        table = np.array(
            [
                [AveragingStack(layers, window, a).horizon(t) for t in tolerances]
                for a in alphas
            ]
        )
        assert (np.diff(table, axis=1) >= 0).all()
        assert (np.diff(table, axis=0) <= 0).all()
        assert table.max() <= layers * (window - 1) + 1
    depths = [AveragingStack(n, window, 0.9).horizon(0.01) for n in (1, 5, 20, 60)]
    assert depths == sorted(set(depths))


def test_a_horizon_is_the_first_distance_below_the_tolerance():
    stack = AveragingStack(10, 12, 0.8)
    shares = tail(stack.influence())
    d = stack.horizon(0.01)
    assert shares[d] < 0.01 <= shares[d - 1]
    assert shares[0] == 1.0
    assert horizon_of(np.array([1.0, 0.5]), 0.1) == 2


def test_large_counts_neither_overflow_nor_take_forever():
    weights = binomial(3000, 0.4)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert weights.argmax() == 1200
    with pytest.raises(ValueError, match="fewer layers or a smaller window"):
        walks(10_000, 10_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 0.5), "layers=0"),
        ((2, 0, 0.5), "window=0"),
        ((10**9, 10**300, 0.5), "at most 2147483648 tokens"),
        ((2, 4, -0.1), r"within \[0, 1\]; got -0.1"),
        ((2, 4, math.nan), "got nan"),
    ],
)
def test_what_is_no_stack_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AveragingStack(*arguments)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0, math.nan])
def test_what_is_no_tolerance_is_refused(tolerance):
    stack = AveragingStack(2, 4, 0.5)
    for horizon in (stack.horizon, stack.single_path_horizon):
        with pytest.raises(ValueError, match="between 0 and 1"):
            horizon(tolerance)


def test_no_influence_has_no_tail():
    with pytest.raises(ValueError, match="above zero"):
        tail(np.zeros(4))
