"""The claims, each judged by the numbers of the run."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from .cases import PARTS, Sizes
from .memory import Memory
from .races import Race
from .scaling import Scaling

LARGEST_DOUBLING = 2.2  # times
MEMORY_LIMIT_GB = 4.0  # 10^9 bytes
EVEN = 1.0  # ours / theirs


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured (None: nothing), and what follows."""

    text: str
    measured: float | None
    limit: str
    verdict: Literal["holds", "misses", "not measured"]


def judge(
    sizes: Sizes,
    /,
    *,
    scaling: Sequence[Scaling],
    memory: Memory,
    mlstm_races: Sequence[Race],
    attention_races: Sequence[Race],
) -> list[Claim]:
    """Returns every claim with its verdict; the worst number of a group decides."""
    claims = []
    for operation in dict.fromkeys(row.operation for row in scaling):
        for part in PARTS:
            rows = [r for r in scaling if (r.operation, r.part) == (operation, part)]
            lengths = _lengths(sizes.scaling_lengths)
            text = f"{operation}, {part}: each doubling of T, {lengths}"
            claims.append(_scaling_claim(text, rows))
    claims.append(_memory_claim(memory))
    for part in PARTS:
        rows = [row for row in mlstm_races if row.part == part]
        lengths = _lengths(sizes.peer_lengths)
        text = f"mlstm beats mlstm_kernels' native form, {part}, T {lengths}"
        claims.append(_faster(text, rows))
    for window in sizes.attention_windows:
        if window is None:
            continue  # full attention is no window: shown, not claimed
        for part in PARTS:
            rows = [r for r in attention_races if (r.window, r.part) == (window, part)]
            lengths = _lengths(sizes.attention_lengths)
            text = f"local_attention beats jax.nn's, W {window}, {part}, T {lengths}"
            claims.append(_faster(text, rows))
    return claims


def _scaling_claim(text: str, rows: Sequence[Scaling]) -> Claim:
    worst = max((row.ratio for row in rows if row.ratio is not None), default=None)
    return _claim(
        text,
        worst,
        f"at most {LARGEST_DOUBLING} times",
        holds=worst is not None and worst <= LARGEST_DOUBLING,
    )


def _memory_claim(memory: Memory) -> Claim:
    case = memory.case
    peak_GB = None if memory.peak_bytes is None else memory.peak_bytes / 1e9
    return _claim(
        f"local_attention with gradients, T {case.tokens}, W {case.window}: peak (GB)",
        peak_GB,
        f"below {MEMORY_LIMIT_GB} GB",
        holds=peak_GB is not None and peak_GB < MEMORY_LIMIT_GB,
    )


def _faster(text: str, rows: Sequence[Race]) -> Claim:
    worst = max((row.ratio for row in rows), default=None)
    holds = worst is not None and worst < EVEN
    return _claim(text, worst, f"ours / theirs below {EVEN}", holds=holds)


def _claim(text: str, measured: float | None, limit: str, *, holds: bool) -> Claim:
    if measured is None:
        return Claim(text, None, limit, "not measured")
    return Claim(text, measured, limit, "holds" if holds else "misses")


def _lengths(lengths: Iterable[int]) -> str:
    return ", ".join(map(str, lengths)) or "none"
