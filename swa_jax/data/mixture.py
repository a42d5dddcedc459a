"""Which source each row of a mixture comes from: a pure function of its number."""

from collections.abc import Sequence
from fractions import Fraction


class Mixture:
    """An endless sequence of sources, in which each has its share of every beginning.

    Of the first n rows, source 0 has floor(n * share + 1/2); source 1 has its share of
    the rest in the same way, and so on. So with S sources the counts are at most S/2
    rows off the shares at any n, and a row is found without those before it.

    Raises ValueError for weights that are not above 0, or for none.
    """

    def __init__(self, weights: Sequence[float], /) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(
                f"weights must be above 0 and finite, at least one: {weights=}"
            )
        # As written: 0.7 is 7/10, not the binary fraction that is next to it.
        exact = [Fraction(repr(float(weight))) for weight in weights]
        self._shares = [
            weight / sum(exact[index:], Fraction(0))
            for index, weight in enumerate(exact)
        ]

    def counts(self, rows: int, /) -> list[int]:
        """How many of the first so many rows come from each source."""
        counts, left = [], rows
        for share in self._shares:
            numerator, denominator = share.numerator, share.denominator
            count = (2 * left * numerator + denominator) // (2 * denominator)
            counts.append(count)
            left -= count
        return counts

    def source_of(self, row: int, /) -> tuple[int, int]:
        """The source of a row, and how many rows of that source come before it."""
        before, after = self.counts(row), self.counts(row + 1)
        for source, (first, second) in enumerate(zip(before, after, strict=True)):
            if second > first:
                return source, first
        raise AssertionError("the counts of one more row sum to one more")
