"""What a run does about gradients that are no numbers and losses that jump."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from swa_jax.models.checks import check_choice
from swa_jax.training.checks import check_at_least, check_within

OnNonfinite = Literal["stop", "skip"]
OnSpike = Literal["ignore", "warn", "skip", "stop"]


@dataclass(frozen=True)
class GuardConfig:
    """A step that is skipped leaves parameters and optimizer state as they were."""

    nonfinite: OnNonfinite = "stop"
    """When the loss or a gradient is infinite or no number: "stop" ends the run, "skip"
    goes on with the next batch."""
    max_skips: int = 10
    """Steps that the whole run may skip; the next one stops it."""
    spike: OnSpike = "warn"
    """When loss or gradient norm jump: "warn" names the batch's documents and takes the
    step, "skip" and "stop" do not take it."""
    spike_deviations: float = 8.0
    """What counts as a jump: the loss, or the logarithm of the gradients' norm, is this
    many standard deviations above its running mean."""
    spike_memory: int = 100
    """Steps over which mean and deviation run; as many pass before the first jump can
    be called one."""

    def __post_init__(self):
        check_choice(self, "nonfinite", get_args(OnNonfinite))
        check_at_least(self, 0, "max_skips")
        check_choice(self, "spike", get_args(OnSpike))
        check_within(self, "spike_deviations", math.ulp(0.0), math.inf)
        check_at_least(self, 2, "spike_memory")
