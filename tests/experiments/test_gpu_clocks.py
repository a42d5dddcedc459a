"""Readings take turns, rotate their inputs, and distrust a clock that loses kernels."""

import dataclasses
from types import SimpleNamespace

import pytest

from experiments.kernel_speed.gpu import clocks
from experiments.kernel_speed.gpu.clocks import Contender, Reading, Refusal
from experiments.kernel_speed.gpu.sizes import QUICK
from experiments.kernel_speed.gpu.times import time_of

SIZES = dataclasses.replace(QUICK, rounds=3, reading_seconds=0.0, part_seconds=60.0)


def contender(name, calls, *, failing_at=None):
    def launch(i):
        calls.append((name, i))
        if failing_at is not None and len(calls) > failing_at:
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory\nand a long story")

    return Contender(launch, wait=lambda _: None)


def test_contenders_take_turns():
    calls = []
    runs = {name: contender(name, calls) for name in "AB"}
    readings = clocks.read_in_turns(runs, SIZES, kernel_clock=None)
    assert [len(readings[name]) for name in "AB"] == [3, 3]
    # Two calls more in the first round tell how many make up a reading: here one.
    first = [("A", 0), ("A", 1), ("A", 0), ("B", 0), ("B", 1), ("B", 0)]
    assert calls == [*first, ("A", 1), ("B", 1), ("A", 2), ("B", 2)]


def test_rounds_end_when_a_part_takes_too_long():
    sizes = dataclasses.replace(SIZES, part_seconds=0.0, rounds=9, least_rounds=2)
    readings = clocks.read_in_turns({"A": contender("A", [])}, sizes, kernel_clock=None)
    assert len(readings["A"]) == 2


def test_one_that_fails_leaves_the_race_with_its_reason():
    runs = {"A": contender("A", [], failing_at=3), "B": contender("B", [])}
    readings = clocks.read_in_turns(runs, SIZES, kernel_clock=None)
    assert readings["A"] == Refusal("MemoryError: RESOURCE_EXHAUSTED: out of memory")
    assert len(readings["B"]) == 3


def test_a_reading_shares_the_time_of_kernels_among_its_calls():
    calls = []

    def clock(run):
        run()
        run()
        return {"forward": 8.0, "backward": 4.0}

    reading = clocks.read(contender("A", calls), calls=4, kernel_clock=clock, first=10)
    assert reading.kernels == {"forward": 2.0, "backward": 1.0}
    assert reading.kernel_seconds == 3.0
    assert [i for _, i in calls] == [10, 11, 12, 13] * 2


def test_a_profiler_that_fails_leaves_the_wall_clock():
    def clock(run):
        raise RuntimeError("CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED")

    reading = clocks.read(contender("A", []), calls=1, kernel_clock=clock)
    assert reading.kernels is None
    assert reading.wall_seconds > 0


def test_without_cupti_the_wall_clock_runs_and_says_why():
    clock, words = clocks.find_kernel_clock(contender("A", []))
    assert clock is None
    assert words.startswith("wall clock: CUPTI cannot be read (")


@pytest.mark.parametrize(
    ("wall", "kernels", "believed"),
    [
        (1e-3, {"a": 9e-4}, True),
        (1e-3, {"a": 4e-4, "b": 4e-4}, True),
        (1e-3, {"a": 4e-4}, False),  # a kernel is lost, or a copy is no kernel
        (1e-4, {"a": 1e-6}, True),  # the host's launching
        (1e-3, None, False),
    ],
)
def test_kernels_must_account_for_the_wall_time(wall, kernels, believed):
    assert clocks.believable(Reading(wall, kernels)) is believed


def test_a_ratio_is_taken_within_a_round_and_by_one_clock():
    ours = [Reading(2e-3, {"a": 1.9e-3}), Reading(20e-3, {"a": 19e-3})]
    theirs = [Reading(1e-3, {"a": 0.95e-3}), Reading(10e-3, {"a": 9.5e-3})]
    time = time_of("theirs", theirs, ours)
    assert (time.clock, time.ratio) == ("kernels", 2.0)
    assert time.median_seconds == pytest.approx((0.95e-3 + 9.5e-3) / 2)
    lossy = [Reading(4e-3, {"a": 1e-3}), Reading(40e-3, {"a": 10e-3})]
    time = time_of("theirs", lossy, ours)
    assert (time.clock, time.ratio) == ("wall", 0.5)


def test_a_refusal_becomes_a_time_without_seconds():
    time = time_of("theirs", Refusal("no such head width"), [Reading(1.0, None)])
    assert time.failure == "no such head width"
    assert time.median_seconds is time.ratio is None


def test_the_profiler_times_the_second_run_and_kernels_add_up_by_name(monkeypatch):
    from jax.experimental.mosaic.gpu import profiler

    log = []
    timings = [("forward", 1.5), ("backward", 4.0), ("forward", 0.5)]  # ms
    extension = SimpleNamespace(
        _cupti_init=lambda: log.append("start"),
        _cupti_get_timings=lambda finalize: timings,
    )
    library = SimpleNamespace(_mosaic_gpu_ext=extension)
    monkeypatch.setattr(profiler, "mosaic_gpu_lib", library)
    kernels = clocks.cupti_clock(lambda: log.append("run"))
    assert log == ["run", "start", "run"]
    assert kernels == pytest.approx({"forward": 2e-3, "backward": 4e-3})
    timings.clear()
    assert clocks.cupti_clock(lambda: None) is None
