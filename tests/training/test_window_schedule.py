"""The stochastic window: its law, its annealing, and that it is a pure function."""

import math
from collections import Counter
from itertools import pairwise

import pytest

from swa_jax.training.config import WindowSchedule
from swa_jax.training.window_schedule import window_at

STEPS = 10_000


def draw_all(schedule, *, steps=STEPS, seed=0):
    return [window_at(schedule, step=s, steps=steps, seed=seed) for s in range(steps)]


@pytest.mark.parametrize("probability", [0.5, 0.75])
def test_frequencies_are_the_probabilities(probability):
    schedule = WindowSchedule(
        (128, 2048), (probability, 1 - probability), anneal_fraction=0.0
    )
    count = Counter(draw_all(schedule))[128]
    deviation = math.sqrt(STEPS * probability * (1 - probability))
    assert abs(count - STEPS * probability) < 4 * deviation


def test_draws_are_independent_of_their_neighbours():
    schedule = WindowSchedule((128, 2048), anneal_fraction=0.0)
    windows = draw_all(schedule)
    repeats = sum(a == b for a, b in pairwise(windows))
    assert abs(repeats - STEPS / 2) < 4 * math.sqrt(STEPS / 4)


def test_the_last_steps_use_the_anneal_window():
    schedule = WindowSchedule((128, 2048), (1.0, 0.0), anneal_fraction=0.1)
    windows = draw_all(schedule, steps=600)
    assert set(windows[:540]) == {128}
    assert set(windows[540:]) == {2048}
    schedule = WindowSchedule((128,), anneal_fraction=0.5, anneal_window=64)
    assert draw_all(schedule, steps=4) == [128, 128, 64, 64]
    assert (schedule.smallest, schedule.largest) == (64, 128)


def test_a_window_of_probability_0_is_never_drawn():
    schedule = WindowSchedule((1, 2, 3), (0.0, 1.0, 0.0), anneal_fraction=0.0)
    assert set(draw_all(schedule, steps=500)) == {2}


def test_the_draw_depends_on_seed_and_step_alone():
    schedule = WindowSchedule((32, 256))
    assert draw_all(schedule, steps=30) == draw_all(schedule, steps=30)
    assert draw_all(schedule, steps=200) != draw_all(schedule, steps=200, seed=1)
    # Pins the stream: another machine or release must draw the same.
    windows = [window_at(schedule, step=s, steps=100, seed=7) for s in range(12)]
    assert windows == [256, 256, 32, 32, 256, 32, 256, 32, 256, 32, 32, 32]


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_of_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step={step}, steps=10"):
        window_at(WindowSchedule(), step=step, steps=10, seed=0)
