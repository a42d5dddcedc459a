"""What a run asks of its machine, as data; it changes no number of the run."""

from dataclasses import dataclass

from swa_jax.training.checks import check_sequence, check_within

DEFAULT_CACHE, NO_CACHE = "default", "none"


@dataclass(frozen=True)
class RuntimeConfig:
    """Where compiled programs are kept, which steps are profiled, when a run hangs."""

    compilation_cache: str = DEFAULT_CACHE
    """Folder that keeps compiled programs for later runs, on a disk of the node.
    "default": one in the user's cache folder; "none": none is kept."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of a profile for TensorBoard and XProf, in RUN/profile.
    None: none."""
    hang_seconds: float = 1800.0
    """Seconds that a run of several processes may spend on one step, one batch of a
    validation, one compilation or one save; longer than that, all end and say which
    process they waited for. 0: they wait for ever."""

    def __post_init__(self):
        check_within(self, "hang_seconds", 0.0, 1e9)
        if not isinstance(self.compilation_cache, str) or not self.compilation_cache:
            raise ValueError(
                "RuntimeConfig.compilation_cache must be 'default', 'none' or a "
                f"folder, got {self.compilation_cache!r}"
            )
        if self.profile_steps is not None:
            self._check_profile_steps(self.profile_steps)

    def _check_profile_steps(self, steps: tuple[int, int]) -> None:
        check_sequence(self, "profile_steps")
        whole = all(type(step) is int for step in steps)
        if not whole or len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
            raise ValueError(
                "RuntimeConfig.profile_steps must be the first and the last step, "
                f"1 <= first <= last, got {steps!r}"
            )
