"""The GPU's targets are judged by the worst case, and not before all are measured."""

import dataclasses

import pytest

from experiments.kernel_speed.gpu.claims import judge
from experiments.kernel_speed.gpu.floors import Peaks
from experiments.kernel_speed.gpu.results import DecodeRow, GpuResults, RaceRow
from experiments.kernel_speed.gpu.sizes import (
    APART,
    CUDNN,
    FLEX,
    FUSED,
    OURS,
    DecodeShape,
    GpuSizes,
    Shape,
)
from experiments.kernel_speed.gpu.times import Time

SIZES = GpuSizes(
    shapes=(Shape(2048, 128, (128, 512, None)), Shape(8192, 128, (128,))),
    decodes=(DecodeShape(1, 128), DecodeShape(512, 2048)),
).of("attention")
PARTS = ("forward", "with gradients")


def race(shape, window, part, *, seconds=2.0, cudnn=0.8, flex=1.0, fused=1.0):
    """A row whose floor is 1 s."""
    times = [
        Time(OURS, median_seconds=seconds),
        Time(CUDNN, median_seconds=seconds / cudnn, ratio=cudnn),
        Time(FLEX, median_seconds=seconds / flex, ratio=flex),
        Time(FUSED, median_seconds=2 * seconds * fused, ratio=0.5 / fused),
        Time(APART, median_seconds=2 * seconds, ratio=0.5),
    ]
    place = (shape.row, shape.batch, shape.width, window, part)
    return RaceRow(*place, 1.0, 0, times, error=0.02, repeatable=True)


def results(**changes):
    rows = [
        race(shape, window, part, **changes)
        for shape in SIZES.shapes
        for window in shape.windows
        for part in PARTS
    ]
    steps = [
        DecodeRow(s.batch, s.width, s.window, 0.0, 1, Time(OURS, median_seconds=1.25))
        for s in SIZES.decodes
    ]
    peaks = Peaks(1.0, 1.0)
    return GpuResults({}, False, peaks, "a clock", races=rows, decodes=steps)


def verdicts(found):
    return {claim.text: claim.verdict for claim in judge(found, SIZES)}


def missed(found):
    return [text for text, verdict in verdicts(found).items() if verdict == "misses"]


def test_every_target_holds_at_its_limit():
    found = verdicts(results())
    assert set(found.values()) == {"holds"}
    assert len(found) == 3 + 2 + 1 + 2 + 2  # W 2048 is not among these sizes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cudnn": 0.81}, ["ours / cuDNN, width 128, W 128, with gradients"]),
        ({"seconds": 2.01}, ["share of the floor, width 128, W 128, with gradients"]),
        (
            {"flex": 1.01},
            [f"ours / FlexAttention, width 128, every window, {p}" for p in PARTS],
        ),
        (
            {"fused": 1.01},
            [f"rope + norm, fused / apart, width 128, W 128, {p}" for p in PARTS],
        ),
    ],
)
def test_a_target_is_missed_just_beyond_its_limit(changes, words):
    assert missed(results(**changes)) == words


def test_a_long_window_may_take_as_long_as_cudnn():
    found = results()
    place = next(
        i
        for i, row in enumerate(found.races)
        if (row.window, row.part) == (512, "with gradients")
    )
    found.races[place] = race(SIZES.shapes[0], 512, "with gradients", cudnn=1.0)
    assert missed(found) == []
    found.races[place] = race(SIZES.shapes[0], 512, "with gradients", cudnn=1.001)
    assert missed(found) == ["ours / cuDNN, width 128, W 512, with gradients"]


def test_a_small_ring_says_nothing_about_bandwidth():
    found = results()
    slow = Time(OURS, median_seconds=1.26)
    found.decodes[0] = dataclasses.replace(found.decodes[0], time=slow)
    assert missed(found) == []
    found.decodes[1] = dataclasses.replace(found.decodes[1], time=slow)
    assert missed(found) == ["decode, rings of 64 MB or more: share of the floor"]


def test_cases_that_lack_leave_a_target_open_unless_one_misses():
    found = results()
    found.races = [row for row in found.races if row.row == 2048]
    found.decodes = []
    open_claims = [t for t, verdict in verdicts(found).items() if verdict != "holds"]
    assert "ours / cuDNN, width 128, W 128, with gradients (1 of 2 measured)" in (
        open_claims
    )
    assert any(text.startswith("decode") for text in open_claims)
    assert missed(found) == []
    found.races = [race(SIZES.shapes[0], 128, "with gradients", cudnn=2.0)]
    (text,) = missed(found)
    assert text.startswith("ours / cuDNN, width 128, W 128, with gradients (1 of 2")


def test_a_refusal_of_the_peer_is_no_victory():
    found = results()
    for i, row in enumerate(found.races):
        refused = [
            Time(CUDNN, "no such width") if t.contender == CUDNN else t
            for t in row.times
        ]
        found.races[i] = dataclasses.replace(row, times=refused)
    kinds = {text: v for text, v in verdicts(found).items() if "cuDNN" in text}
    assert set(kinds.values()) == {"not measured"}


def test_a_failure_of_ours_misses():
    found = results()
    row = found.races[1]
    failed = [Time(OURS, "out of shared memory"), *row.times[1:]]
    found.races[1] = dataclasses.replace(row, times=failed, error=None, repeatable=None)
    assert len(missed(found)) == 5
    assert found.faults() == [
        "rows of 2048, width 128, W 128, with gradients: out of shared memory"
    ]


def test_wrong_and_unsteady_numbers_are_faults():
    found = results()
    found.races[0] = dataclasses.replace(found.races[0], error=0.021)
    found.races[1] = dataclasses.replace(found.races[1], repeatable=False)
    assert [fault.rpartition(": ")[2] for fault in found.faults()] == [
        "error 2.1e-02",
        "two runs differ",
    ]
    assert missed(found) == [
        "largest error against float32, of the largest value",
        "two runs equal in every bit",
    ]
