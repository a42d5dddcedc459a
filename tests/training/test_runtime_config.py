"""What a run asks of its machine."""

import pytest

from swa_jax.training.config import RuntimeConfig
from tests.training.tiny import run_config


@pytest.mark.parametrize("steps", [(0, 1), (2, 1), (1,), (1, 2, 3), (1.0, 2), 5, "12"])
def test_profiled_steps_are_a_first_and_a_last_one(steps):
    with pytest.raises(ValueError, match=r"RuntimeConfig.profile_steps must be .* got"):
        RuntimeConfig(profile_steps=steps)


def test_profiled_steps_are_steps_of_the_run():
    run_config(runtime=RuntimeConfig(profile_steps=(2, 12)))
    with pytest.raises(ValueError, match=r"profile_steps=\(2, 13\), steps=12"):
        run_config(runtime=RuntimeConfig(profile_steps=(2, 13)))


@pytest.mark.parametrize("folder", ["", None, 3])
def test_the_cache_is_a_word_or_a_folder(folder):
    with pytest.raises(ValueError, match=r"RuntimeConfig.compilation_cache must be"):
        RuntimeConfig(compilation_cache=folder)
