"""Does the time double when the length doubles?"""

import dataclasses
import statistics
from collections.abc import Callable
from itertools import pairwise

from .cases import PARTS, Case, Part, Sizes, attention_case, mlstm_case
from .flops import attention_flops, mlstm_flops
from .timing import interleaved, median_ratio


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The time of one operation at one length, in seconds of each round.

    `ratio` divides it by the time at the length before (None at the first length).
    """

    operation: str
    part: Part
    tokens: int
    seconds: tuple[float, ...]
    median_seconds: float
    ratio: float | None
    flops: float


def measure_scaling(
    sizes: Sizes, /, *, seed: int, progress: Callable[[str], None]
) -> list[Scaling]:
    """Returns a row per operation, part and length."""
    makers = {"local_attention": _attention, "mlstm": _mlstm}
    rows = []
    for operation, make in makers.items():
        for part in PARTS:
            progress(f"scaling: {operation}, {part}")
            rows += _lengths(operation, part, make, sizes, seed)
    return rows


def _lengths(operation, part, make, sizes: Sizes, seed) -> list[Scaling]:
    cases = {T: make(sizes, T, part, seed) for T in sizes.scaling_lengths}
    runs = {T: case.run(part) for T, (case, _) in cases.items()}
    seconds = interleaved(runs, rounds=sizes.rounds)
    ratios = {
        T: median_ratio(seconds[T], seconds[before]) for before, T in pairwise(seconds)
    }
    return [
        Scaling(
            operation,
            part,
            T,
            tuple(seconds[T]),
            statistics.median(seconds[T]),
            ratios.get(T),
            flops,
        )
        for T, (_, flops) in cases.items()
    ]


def _attention(sizes: Sizes, tokens, part, seed) -> tuple[Case, float]:
    """Returns windowed attention at one length and its FLOPs."""
    shape = {
        "tokens": tokens,
        "window": sizes.scaling_window,
        "heads": sizes.attention_heads,
        "width": sizes.attention_width,
    }
    flops = attention_flops(**shape, gradients=part == "with gradients")
    return attention_case(**shape, seed=seed), flops


def _mlstm(sizes: Sizes, tokens, part, seed) -> tuple[Case, float]:
    """Returns the mLSTM at one length and its FLOPs."""
    shape = {
        "tokens": tokens,
        "heads": sizes.mlstm_heads,
        "key_width": sizes.mlstm_key_width,
        "value_width": sizes.mlstm_value_width,
    }
    flops = mlstm_flops(**shape, gradients=part == "with gradients")
    return mlstm_case(**shape, seed=seed), flops
