"""Ours against theirs, in turns, in one process."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import PARTS, Case, Part, Sizes, attention_case, mlstm_case
from .flops import attention_flops, mlstm_flops
from .peer import (
    jax_attention_case,
    load_peer_mlstm,
    peer_mlstm_case,
    swap_heads_and_tokens,
)
from .timing import interleaved, median_ratio, seconds_of

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Race:
    """Times of both, in seconds of each round, and the median of ours / theirs.

    A window of None is no window. `largest_difference` is that of the outputs and,
    with gradients, of the gradients of all inputs; `largest_value` is the largest of
    the same numbers, ours. The first call includes compiling.
    """

    part: Part
    tokens: int
    window: int | None
    our_seconds: tuple[float, ...]
    their_seconds: tuple[float, ...]
    our_median_seconds: float
    their_median_seconds: float
    our_first_call_seconds: float
    their_first_call_seconds: float
    ratio: float
    largest_difference: float
    largest_value: float
    flops: float


def race_mlstm(sizes: Sizes, /, *, seed: int, progress: Progress) -> list[Race]:
    """Returns a row per length and part: mlstm against mlstm_kernels' native form.

    Raises:
      PeerMissing: mlstm_kernels, or something that it needs, is not installed.
    """
    load_peer_mlstm()
    shape = {
        "heads": sizes.mlstm_heads,
        "key_width": sizes.mlstm_key_width,
        "value_width": sizes.mlstm_value_width,
    }
    rows = []
    for T in sizes.peer_lengths:
        ours = mlstm_case(tokens=T, **shape, seed=seed)
        theirs = peer_mlstm_case(ours)
        for part in PARTS:
            gradients = part == "with gradients"
            setting = {
                "part": part,
                "tokens": T,
                "window": None,
                "flops": mlstm_flops(tokens=T, **shape, gradients=gradients),
            }
            progress(f"race: mlstm, T {T}, {part} (theirs unrolls: compiles slowly)")
            row = _race(ours, theirs, setting, sizes.rounds, swap_heads_and_tokens)
            progress(f"  theirs compiled in {row.their_first_call_seconds:.1f} s")
            rows.append(row)
    return rows


def race_attention(sizes: Sizes, /, *, seed: int, progress: Progress) -> list[Race]:
    """Returns a row per length, window and part, against jax.nn's attention."""
    shape = {"heads": sizes.attention_heads, "width": sizes.attention_width}
    rows = []
    for T in sizes.attention_lengths:
        for window in sizes.attention_windows:
            ours = attention_case(tokens=T, window=window, **shape, seed=seed)
            theirs = jax_attention_case(ours, window=window)
            for part in PARTS:
                gradients = part == "with gradients"
                flops = attention_flops(
                    tokens=T, window=window, **shape, gradients=gradients
                )
                setting = {"part": part, "tokens": T, "window": window, "flops": flops}
                progress(f"race: attention, T {T}, window {window}, {part}")
                rows.append(_race(ours, theirs, setting, sizes.rounds, jnp.asarray))
    return rows


def _race(ours: Case, theirs: Case, setting, rounds, to_our_layout) -> Race:
    part = setting["part"]
    runs = {"ours": ours.run(part), "theirs": theirs.run(part)}
    first = {name: seconds_of(run) for name, run in runs.items()}
    our_output = runs["ours"]()
    their_output = jax.tree.map(to_our_layout, runs["theirs"]())
    difference = largest_difference(our_output, their_output)
    value = largest_difference(our_output, jax.tree.map(jnp.zeros_like, our_output))
    del our_output, their_output
    # Both are warm: one call has compiled, one has been compared.
    seconds = interleaved(runs, rounds=rounds, warmup_rounds=0)
    return Race(
        **setting,
        our_seconds=tuple(seconds["ours"]),
        their_seconds=tuple(seconds["theirs"]),
        our_median_seconds=statistics.median(seconds["ours"]),
        their_median_seconds=statistics.median(seconds["theirs"]),
        our_first_call_seconds=first["ours"],
        their_first_call_seconds=first["theirs"],
        ratio=median_ratio(seconds["ours"], seconds["theirs"]),
        largest_difference=difference,
        largest_value=value,
    )


def largest_difference(ours: Any, theirs: Any, /) -> float:
    """Returns the largest absolute difference between two equal trees of arrays.

    Raises:
      FloatingPointError: a difference is not finite, so the race would mean nothing.
    """
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), ours, theirs)
    largest = float(np.max([float(d) for d in jax.tree.leaves(differences)]))
    if not np.isfinite(largest):
        raise FloatingPointError(f"ours and theirs differ by {largest}.")
    return largest
