"""The stochastic window of arXiv:2509.24552: one window per step, drawn on the host."""

import math
from dataclasses import dataclass

import numpy as np

from swa_jax.training.checks import check_at_least, check_sequence, check_within


@dataclass(frozen=True)
class WindowSchedule:
    """The stochastic window: one draw per step, the same in every layer and host."""

    windows: tuple[int, ...] = (128, 2048)
    """Windows to draw from, in tokens, the reading token included. One that is longer
    than a row is full causal attention."""
    probabilities: tuple[float, ...] | None = None
    """Probability of each of the windows, with a sum of 1. None: all the same."""
    anneal_fraction: float = 0.1
    """Fraction of the steps, at the end, that all use anneal_window."""
    anneal_window: int | None = None
    """Window of those last steps, in tokens. None: the largest of windows."""

    def __post_init__(self):
        check_sequence(self, "windows")
        if not self.windows or min(self.windows) < 1 or max(self.windows) >= 2**31:
            raise ValueError(
                "WindowSchedule.windows must hold at least one window of at least 1 "
                f"and below 2**31 tokens, got {self.windows!r}"
            )
        check_within(self, "anneal_fraction", 0.0, 1.0)
        if self.anneal_window is not None:
            check_at_least(self, 1, "anneal_window")
        if self.probabilities is not None:
            self._check_probabilities(self.probabilities)

    def _check_probabilities(self, probabilities: tuple[float, ...]) -> None:
        check_sequence(self, "probabilities")
        if (
            len(probabilities) != len(self.windows)
            or min(probabilities) < 0
            or not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6)
        ):
            raise ValueError(
                "WindowSchedule.probabilities must hold one number >= 0 for each of "
                f"windows={self.windows!r}, with a sum of 1; got {probabilities!r}"
            )

    @property
    def smallest(self) -> int:
        """The smallest window that a step can have, in tokens."""
        return min(self._all())

    @property
    def largest(self) -> int:
        """The largest window that a step can have, in tokens."""
        return max(self._all())

    def _all(self) -> tuple[int, ...]:
        annealed = () if self.anneal_window is None else (self.anneal_window,)
        return self.windows + annealed


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
