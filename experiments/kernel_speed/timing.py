"""Clocks: interleaved repetitions, their medians, and the matmul peak."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], Any]


def seconds_of(run: Run, /) -> float:
    """Returns how long one call takes until its last array is there, in seconds."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def interleaved(
    runs: Mapping[Key, Run], /, *, rounds: int, warmup_rounds: int = 2
) -> dict[Key, list[float]]:
    """Returns the seconds of each run in each round: A B C A B C, never A A B B C C.

    Whatever else the machine does then falls on neighbours alike. The warm-up rounds
    compile and are thrown away.
    """
    for _ in range(warmup_rounds):
        for run in runs.values():
            seconds_of(run)
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            seconds[key].append(seconds_of(run))
    return seconds


def median_ratio(seconds: Sequence[float], others: Sequence[float], /) -> float:
    """Returns the median over the rounds of seconds / others in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def matmul_peak(*, size: int, rounds: int, seed: int) -> float:
    """Returns the FLOP/s of the fastest float32 matmul of size x size matrices.

    Full float32 products ("highest"), as the operations use on float32 arrays.
    """
    random = np.random.default_rng(seed)
    x_MM, y_MM = (
        jnp.asarray(random.standard_normal((size, size), dtype=np.float32))
        for _ in range(2)
    )
    multiply = jax.jit(partial(jnp.matmul, precision="highest"))
    seconds = interleaved({"matmul": lambda: multiply(x_MM, y_MM)}, rounds=rounds)
    return 2.0 * size**3 / min(seconds["matmul"])
