"""Where the time of a run goes, by a clock that tells what the test says."""

import pytest

from swa_jax.training.throughput import TIMES, Throughput


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def throughput(clock, *, peak=None):
    return Throughput(
        flops_per_token=lambda window: 10.0 * window, peak_flops=peak, clock=clock
    )


def step(spans, clock, *, seconds, tokens=1000, window=8, wait=0.0):
    with spans.waiting_for_input():
        clock.wait(wait)
    clock.wait(seconds - wait)
    spans.step_done(tokens=tokens, window=window)


def test_the_first_step_is_in_no_rate(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=50.0)
    assert spans.since_last_line() == {}
    assert "tokens_per_second" not in spans.of_the_run()
    step(spans, clock, seconds=2.0)
    assert spans.since_last_line()["tokens_per_second"] == 500.0
    assert spans.of_the_run()["steps"] == 1


def test_stalls_are_apart_from_the_steps(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=1.0)
    step(spans, clock, seconds=2.0)
    with spans.stall("evaluation"):
        clock.wait(30.0)
    with spans.stall("checkpoint"):
        clock.wait(5.0)
    step(spans, clock, seconds=2.0)
    line = spans.since_last_line()
    assert line["tokens_per_second"] == 500.0
    assert line["step_seconds"] == 2.0
    assert line["evaluation_seconds"] == 30.0
    assert line["checkpoint_seconds"] == 5.0
    assert set(line) | {"mfu"} == set(TIMES)


def test_steps_and_stalls_are_all_of_the_time(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=3.0)
    begin = clock.now
    for seconds in (1.0, 4.0, 0.5):
        step(spans, clock, seconds=seconds)
        clock.wait(0.25)  # nobody's: it is the next step's
        with spans.stall("checkpoint"):
            clock.wait(seconds)
    totals = spans.of_the_run()
    stepping = totals["step_seconds"] * totals["steps"]
    assert stepping + totals["checkpoint_seconds"] == clock.now - begin


def test_a_line_begins_anew_and_the_run_does_not(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=1.0)
    step(spans, clock, seconds=1.0)
    spans.begin_line()
    assert spans.since_last_line() == {}
    step(spans, clock, seconds=4.0)
    step(spans, clock, seconds=6.0)
    assert spans.since_last_line()["tokens_per_second"] == 200.0
    assert spans.of_the_run()["tokens"] == 3000
    assert spans.of_the_run()["tokens_per_second"] == pytest.approx(3000 / 11)


def test_the_share_of_waiting_for_input(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=9.0, wait=9.0)
    step(spans, clock, seconds=4.0, wait=1.0)
    assert spans.since_last_line()["input_wait"] == 0.25


def test_waiting_is_never_more_than_the_step(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=1.0)
    with spans.waiting_for_input():  # before an evaluation takes its time
        clock.wait(50.0)
    with spans.stall("evaluation"):
        pass
    step(spans, clock, seconds=1.0)
    assert spans.since_last_line()["input_wait"] <= 1.0


def test_mfu_counts_each_step_at_its_own_window(clock):
    spans = throughput(clock, peak=1e6)
    step(spans, clock, seconds=1.0)
    step(spans, clock, seconds=1.0, tokens=1000, window=8)  # 80 000 FLOPs
    assert spans.since_last_line()["mfu"] == pytest.approx(0.08)
    step(spans, clock, seconds=3.0, tokens=2000, window=32)  # 640 000 FLOPs
    assert spans.of_the_run()["mfu"] == pytest.approx(0.72 / 4)


def test_no_mfu_without_a_peak_and_no_rate_without_time(clock):
    spans = throughput(clock)
    step(spans, clock, seconds=1.0)
    step(spans, clock, seconds=1.0)
    assert "mfu" not in spans.of_the_run()
    spans.begin_line()
    step(spans, clock, seconds=0.0)
    assert "tokens_per_second" not in spans.since_last_line()
