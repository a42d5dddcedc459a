"""Ours beside the published forms, entry by entry, and what follows."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.kernel_speed.claims import Claim
from experiments.kernel_speed.gpu.groups import Group, Limit, verdict

from .errors import Error
from .ours import OURS
from .outputs import VALUES
from .published import KERNEL
from .results import Row

JUDGED = tuple(name for name in OURS if name != "reference")
AGAINST = ("native_custbw", KERNEL)  # those with the published gradient
GROUPS = ("values", "norm")  # where the published gradient means to be right
WORSE = Limit(2.0)  # ours / theirs: worse by no more than their own error
FORGET = Limit(0.1)  # ours / theirs
FAR = 65_536  # tokens: a sum over the whole row has gathered its errors
ROUNDING = float(np.finfo(np.float32).eps)  # a smaller error of theirs counts as this


class Setting(NamedTuple):
    """What a line of the tables is about; the seeds are behind it."""

    tokens: int
    bias: float
    dtype: str


Entries = dict[str, dict[str, Error]]  # as Errors, medians over the seeds


def medians(rows: Iterable[Row], /) -> dict[Setting, dict[str, Entries]]:
    """Returns the entries by setting and form."""
    seeds: dict[tuple[Setting, str], list[Row]] = {}
    for row in rows:
        setting = Setting(row.case.tokens, row.case.bias, row.case.dtype)
        seeds.setdefault((setting, row.form), []).append(row)
    found: dict[Setting, dict[str, Entries]] = {}
    for (setting, form), same in seeds.items():
        found.setdefault(setting, {})[form] = {
            group: {name: _median(same, group, name) for name in names}
            for group, names in same[0].errors.items()
        }
    return dict(sorted(found.items()))


def _median(rows, group, name):
    errors = [row.errors[group][name] for row in rows]
    return Error(*(statistics.median(each) for each in zip(*errors, strict=True)))


class Ratio(NamedTuple):
    """Ours / theirs of one entry in one setting."""

    setting: Setting
    group: str
    name: str
    rms: float
    p99: float

    @property
    def both(self) -> float:
        """By how much the entry is worse, the few worst tokens and all others alike.

        The rms alone can be that of a single token, whose divisor came close to zero.
        """
        return min(self.rms, self.p99)


def ratios(
    entries: dict[Setting, dict[str, Entries]], ours: str, theirs: str, /
) -> list[Ratio]:
    """Returns the ratios of all settings in which both were measured.

    The memory's initial gradients are left out: the published forms give zero for n and
    m.
    """
    found = []
    for setting, forms in entries.items():
        if ours not in forms or theirs not in forms:
            continue
        for group in GROUPS:
            for name in names_of(group):
                pair = (forms[form][group][name][1:] for form in (ours, theirs))
                compared = map(_ratio, *pair)
                found.append(Ratio(setting, group, name, *compared))
    return found


def _ratio(ours: float, theirs: float) -> float:
    return max(ours, ROUNDING) / max(theirs, ROUNDING)


def names_of(group: str, /) -> tuple[str, ...]:
    """Returns the outputs of a group that the published forms mean to give."""
    return VALUES if group == "values" else ("dq", "dk", "dv", "di", "df", "dc")


class Pair(NamedTuple):
    """A form of ours and a published one."""

    dtype: str
    ours: str
    theirs: str
    ratios: list[Ratio]


def compare(entries: dict[Setting, dict[str, Entries]], /) -> list[Pair]:
    """Returns the pairs of which both were measured."""
    pairs = []
    for dtype in sorted({setting.dtype for setting in entries}):
        some = {s: forms for s, forms in entries.items() if s.dtype == dtype}
        for ours, theirs in itertools.product(JUDGED, AGAINST):
            if found := ratios(some, ours, theirs):
                pairs.append(Pair(dtype, ours, theirs, found))
    return pairs


def judge(rows: Sequence[Row], /) -> list[Claim]:
    """Returns the claims about every form of ours that was measured.

    In bfloat16 they are about the kernels: the native forms compute in float32 there.
    """
    entries = medians(rows)
    measured = {pair[:3]: pair.ratios for pair in compare(entries)}
    there = {(s.dtype, form) for s, forms in entries.items() for form in forms}
    claims = []
    for dtype, ours in itertools.product(("bfloat16", "float32"), JUDGED):
        for theirs in AGAINST if dtype == "float32" else (KERNEL,):
            if (dtype, ours) in there:
                found = measured.get((dtype, ours, theirs), [])
                claims += _claims(found, f"{ours} / {theirs}, {dtype}")
    return claims


def _claims(found: Sequence[Ratio], pair: str) -> list[Claim]:
    forget = [r.rms for r in found if r.name == "df" and r.setting.tokens >= FAR]
    worse = [ratio.both for ratio in found]
    return [
        _claim(f"{pair}: no entry worse", worse, WORSE),
        _claim(f"{pair}: df ten times nearer at T {FAR}", forget, FORGET),
    ]


def _claim(text: str, values: Sequence[float], limit: Limit) -> Claim:
    if not values:
        return Claim(text, None, str(limit), "not measured")
    return verdict(Group(text, list(values), limit))
