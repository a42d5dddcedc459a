"""Profiles of chosen steps: which steps, where, and that a cut-off run has one."""

import jax
import jax.numpy as jnp
import pytest

from swa_jax.training.step_profile import StepProfile


@pytest.fixture
def calls(monkeypatch):
    """What the profiler is told, in place of a profile of seconds."""
    made = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda folder: made.append(("start", folder))
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append(("stop",)))
    return made


def run(profile, steps):
    with profile:
        for number in steps:
            with profile.step(number):
                result = jnp.ones(3) * number
            profile.started(number, result)


def test_the_steps_asked_for_are_traced(tmp_path, calls):
    said = []
    run(StepProfile((2, 3), folder=tmp_path, say=said.append), range(1, 6))
    assert calls == [("start", str(tmp_path / "profile")), ("stop",)]
    [line] = said
    assert str(tmp_path / "profile") in line
    assert "tensorboard --logdir" in line


@pytest.mark.parametrize(
    ("asked", "steps", "traces"),
    [
        (None, range(1, 4), 0),
        ((1, 1), range(1, 4), 1),
        ((3, 9), range(1, 5), 1),  # the run is stopped in the middle
        ((3, 9), range(5, 12), 1),  # and goes on there
        ((3, 4), range(5, 12), 0),
    ],
)
def test_a_run_has_what_it_made_of_the_range(asked, steps, traces, tmp_path, calls):
    run(StepProfile(asked, folder=tmp_path, say=lambda line: None), steps)
    assert [call[0] for call in calls] == ["start", "stop"] * traces


def test_an_error_in_a_traced_step_ends_the_trace(tmp_path, calls):
    profile = StepProfile((1, 5), folder=tmp_path, say=lambda line: None)
    with pytest.raises(RuntimeError, match="a bug"), profile, profile.step(1):
        raise RuntimeError("a bug")
    assert [call[0] for call in calls] == ["start", "stop"]


def test_a_profile_is_written(tmp_path):
    run(StepProfile((2, 2), folder=tmp_path, say=lambda line: None), range(1, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
