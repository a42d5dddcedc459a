"""The optimizer and its schedule, as data."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from swa_jax.models.checks import check_choice
from swa_jax.training.checks import check_within

ScheduleKind = Literal["cosine", "wsd"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with a linear warm-up and a way down to a part of the peak."""

    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up (per step, dimensionless)."""
    final_lr_ratio: float = 0.1
    """Learning rate of the last step, as a fraction of peak_lr."""
    warmup_fraction: float = 0.02
    """Fraction of the steps over which the learning rate rises from 0."""
    schedule: ScheduleKind = "cosine"
    """After the warm-up: "cosine" falls from there on along half a cosine; "wsd"
    (warm-up, stable, decay) stays at the peak and falls at the end."""
    decay_fraction: float = 0.2
    """Fraction of the steps, at the end, over which "wsd" falls."""
    beta1: float = 0.9
    """Decay per step of the mean of the gradients."""
    beta2: float = 0.95
    """Decay per step of the mean of the squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the mean squared gradient."""
    weight_decay: float = 0.1
    """Decay of matrices, in units of the learning rate; the embedding, norms, biases
    and attention sinks never decay."""
    clip_norm: float = 0.5
    """Largest global norm of the gradients; longer ones are scaled down to it."""
    ema_decay: float | None = None
    """Decay per step of a running mean of the parameters, which is then what is
    validated, evaluated, exported and generated from. None: there is none."""

    def __post_init__(self):
        check_within(self, "peak_lr", 0.0, 1.0)
        check_within(self, "final_lr_ratio", 0.0, 1.0)
        check_within(self, "warmup_fraction", 0.0, 1.0)
        for name in ("beta1", "beta2"):
            check_within(self, name, 0.0, math.nextafter(1.0, 0.0))
        check_within(self, "epsilon", 0.0, 1.0)
        check_within(self, "weight_decay", 0.0, 10.0)
        check_within(self, "clip_norm", math.ulp(0.0), math.inf)
        check_choice(self, "schedule", get_args(ScheduleKind))
        check_within(self, "decay_fraction", 0.0, 1.0)
        if self.ema_decay is not None:
            check_within(self, "ema_decay", 0.0, math.nextafter(1.0, 0.0))
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                "OptimizerConfig: warm-up and decay must fit into the run, got "
                f"warmup_fraction={self.warmup_fraction} and "
                f"decay_fraction={self.decay_fraction}, with a sum above 1"
            )
