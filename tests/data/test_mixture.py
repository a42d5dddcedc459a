from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.data.mixture import Mixture

weights = st.lists(
    st.floats(1e-3, 1e3, allow_nan=False, allow_infinity=False), min_size=1, max_size=6
)


@given(weights, st.integers(0, 10**12))
def test_shares_are_exact_to_rounding(weights, rows):
    counts = Mixture(weights).counts(rows)
    assert sum(counts) == rows
    exact = [Fraction(repr(weight)) for weight in weights]
    for count, weight in zip(counts, exact, strict=True):
        assert abs(count - rows * weight / sum(exact)) <= Fraction(len(weights), 2)


@given(weights, st.integers(0, 10**9))
def test_a_row_needs_none_of_those_before_it(weights, first):
    mixture = Mixture(weights)
    counts = mixture.counts(first)
    for row in range(first, first + 20):
        source, index = Mixture(weights).source_of(row)
        assert index == counts[source]  # the next row of its source
        counts[source] += 1
    assert counts == mixture.counts(first + 20)


def test_decimal_weights_mean_what_they_say():
    mixture = Mixture([0.7, 0.2, 0.1])
    assert mixture.counts(10) == [7, 2, 1]
    assert mixture.counts(10**15) == [7 * 10**14, 2 * 10**14, 10**14]
    assert Mixture([7, 2, 1]).counts(12345) == mixture.counts(12345)


def test_sources_are_spread_evenly():
    mixture = Mixture([3, 1])
    for start in range(0, 400, 4):
        drawn = Counter(mixture.source_of(row)[0] for row in range(start, start + 4))
        assert drawn == {0: 3, 1: 1}


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")], [1e999]])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="weights must be above 0"):
        Mixture(weights)
