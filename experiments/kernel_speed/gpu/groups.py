"""A claim is judged by the worst of the values that it is about."""

import operator
from typing import NamedTuple

from ..claims import Claim

Values = list[float | None]


class Limit(NamedTuple):
    """A bound on every value of a claim."""

    value: float
    most: bool = True  # at most; else at least

    def __str__(self) -> str:
        return f"{'at most' if self.most else 'at least'} {self.value:.3g}"


class Group(NamedTuple):
    """What is claimed, a value for each case that it is about, and their bound.

    A value is None where the case was not measured.
    """

    text: str
    values: Values
    limit: Limit


def verdict(group: Group, /) -> Claim:
    """Returns the claim about a group of values, which are not empty, with its verdict.

    A group with cases that were not measured, and none that misses, is not measured.
    """
    text, values, limit = group
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        text += f" ({len(known)} of {len(values)} measured)"
    if not known:
        return Claim(text, None, str(limit), "not measured")
    worst = max(known) if limit.most else min(known)
    keeps = operator.le if limit.most else operator.ge
    # JSON has no infinity: a failure of ours misses without a number.
    measured = worst if abs(worst) != float("inf") else None
    if not keeps(worst, limit.value):
        return Claim(text, measured, str(limit), "misses")
    whole = len(known) == len(values)
    return Claim(text, measured, str(limit), "holds" if whole else "not measured")
