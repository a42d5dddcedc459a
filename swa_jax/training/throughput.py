"""Where the time of a run goes: steps, waiting for input, and what stops the steps.

Nothing here knows of devices: spans of a clock in, rates out.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stall = Literal["checkpoint", "evaluation"]

# What a line of the log has from the clock: two runs are equal but for these.
TIMES = (
    "tokens_per_second",
    "step_seconds",
    "input_wait",
    "mfu",
    "checkpoint_seconds",
    "evaluation_seconds",
)


@dataclass
class Spans:
    """Sums over some steps; times in seconds."""

    steps: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    stepping: float = 0.0  # from one step's end to the next one's, without stalls
    input: float = 0.0  # of it, in which the loop waited for a batch
    checkpoint: float = 0.0  # in which no step ran because of a save
    evaluation: float = 0.0

    def rates(self, *, peak_flops: float | None) -> dict[str, float]:
        """Tokens/s, seconds a step, share of waiting for input and, with a peak, MFU.

        Nothing where no time has passed.
        """
        if not self.steps or self.stepping <= 0:
            return {}
        rates = {
            "tokens_per_second": self.tokens / self.stepping,
            "step_seconds": self.stepping / self.steps,
            "input_wait": self.input / self.stepping,
        }
        if peak_flops is not None:
            rates["mfu"] = self.flops / self.stepping / peak_flops
        return rates

    def stalls(self) -> dict[str, float]:
        """The seconds of each kind of stall that there was."""
        stalls = {
            "checkpoint_seconds": self.checkpoint,
            "evaluation_seconds": self.evaluation,
        }
        return {name: seconds for name, seconds in stalls.items() if seconds}


class Throughput:
    """Sums of a run's spans, since the last line of its log and since its start.

    The first step is in no rate: the device then also does what is done once. A step
    lasts from the end of the one before, or of the stall between, to its own end, so
    steps, stalls and the first step add up to the time of the loop. The loop waits for
    the next batch while the device still computes: `input_wait` is an upper bound of
    the time that the device is idle for want of a batch.
    """

    def __init__(
        self,
        *,
        flops_per_token: Callable[[int], float],
        peak_flops: float | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`flops_per_token` by window (tokens); `peak_flops` (FLOP/s), all devices'."""
        self._flops_per_token, self._peak = flops_per_token, peak_flops
        self._clock = clock
        self._flops_of_window: dict[int, float] = {}
        self._interval, self._run = Spans(), Spans()
        self._warm = False
        self._mark = clock()  # the end of the last step or stall
        self._waited = 0.0

    @contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """The loop waits for a batch in the block."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextmanager
    def stall(self, kind: Stall, /) -> Iterator[None]:
        """No step runs in the block: a save, or an evaluation."""
        yield
        now = self._clock()
        for spans in (self._interval, self._run):
            setattr(spans, kind, getattr(spans, kind) + now - self._mark)
        self._mark = now

    def step_done(self, *, tokens: float, window: int) -> None:
        """A step has ended, with this number of tokens, at this window."""
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        waited, self._waited = min(self._waited, seconds), 0.0
        if not self._warm:
            self._warm = True
            return
        if window not in self._flops_of_window:
            self._flops_of_window[window] = self._flops_per_token(window)
        for spans in (self._interval, self._run):
            spans.steps += 1
            spans.tokens += tokens
            spans.flops += tokens * self._flops_of_window[window]
            spans.stepping += seconds
            spans.input += waited

    def since_last_line(self) -> dict[str, float]:
        """The rates and stalls since `begin_line`."""
        return self._interval.rates(peak_flops=self._peak) | self._interval.stalls()

    def begin_line(self) -> None:
        """Begins the sums of the next line."""
        self._interval = Spans()

    def of_the_run(self) -> dict[str, float]:
        """The rates and stalls of all steps but the first."""
        counts = {"steps": self._run.steps, "tokens": self._run.tokens}
        return counts | self._run.rates(peak_flops=self._peak) | self._run.stalls()
