"""The stochastic window of arXiv:2509.24552: one window per step, drawn on the host."""

import numpy as np

from swa_jax.training.config import WindowSchedule


def window_at(schedule: WindowSchedule, /, *, step: int, steps: int, seed: int) -> int:
    """The window (tokens) of the step with this index, 0 <= step < steps.

    A pure function: every host and every resumed run draws the same window. It is
    `windows[j]` with probability `probabilities[j]`, independently at each step, and
    `anneal_window` during the last round(anneal_fraction * steps) steps.

    Raises ValueError for a step outside of the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"wanted 0 <= step < steps, got {step=}, {steps=}")
    if step >= steps - round(schedule.anneal_fraction * steps):
        return schedule.anneal_window or max(schedule.windows)
    probabilities = schedule.probabilities or (1.0,) * len(schedule.windows)
    cumulative = np.cumsum(probabilities)
    draw = _uniform(seed=seed, step=step) * cumulative[-1]
    # side="right" skips a window of probability 0; draw < cumulative[-1] always.
    return schedule.windows[int(np.searchsorted(cumulative, draw, side="right"))]


def _uniform(*, seed: int, step: int) -> float:
    """A number in [0, 1) with 53 random bits: Philox, keyed by seed and step."""
    raw = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw()
    return (int(raw) >> 11) * 2.0**-53
