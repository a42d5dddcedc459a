"""What a training run is, as data: frozen dataclasses, checked when they are made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swa_jax.data.config import DataConfig
from swa_jax.models.config import ModelConfig
from swa_jax.models.presets import preset as model_preset


@dataclass(frozen=True)
class BatchConfig:
    """The rows of one optimizer step."""

    rows: int = 16
    """Rows of data.seq_len tokens per optimizer step, over all devices."""
    accumulation: int = 1
    """Microbatches that an optimizer step is cut into; a divisor of rows. It saves
    memory and changes the result by rounding only."""

    def __post_init__(self):
        _check_at_least(self, 1, "rows", "accumulation")
        if self.rows % self.accumulation:
            raise ValueError(
                "BatchConfig: rows must be a multiple of accumulation, got "
                f"rows={self.rows}, accumulation={self.accumulation}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with a linear warm-up and a cosine down to a part of the peak."""

    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up (per step, dimensionless)."""
    final_lr_ratio: float = 0.1
    """Learning rate of the last step, as a fraction of peak_lr."""
    warmup_fraction: float = 0.02
    """Fraction of the steps over which the learning rate rises from 0."""
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

    def __post_init__(self):
        _check_within(self, "peak_lr", 0.0, 1.0)
        _check_within(self, "final_lr_ratio", 0.0, 1.0)
        _check_within(self, "warmup_fraction", 0.0, 1.0)
        for name in ("beta1", "beta2"):
            _check_within(self, name, 0.0, math.nextafter(1.0, 0.0))
        _check_within(self, "epsilon", 0.0, 1.0)
        _check_within(self, "weight_decay", 0.0, 10.0)
        _check_within(self, "clip_norm", math.ulp(0.0), math.inf)


@dataclass(frozen=True)
class WindowSchedule:
    """The stochastic window: one draw per step, the same in every layer and host."""

    windows: tuple[int, ...] = (128, 2048)
    """Windows to draw from, in tokens, the reading token included. One that is longer
    than a row is full causal attention."""
    probabilities: tuple[float, ...] | None = None
    """Probability of each of the windows, with a sum of 1. None: all the same."""
    anneal_fraction: float = 0.1
    """Fraction of the steps, at the end, that all use anneal_window."""
    anneal_window: int | None = None
    """Window of those last steps, in tokens. None: the largest of windows."""

    def __post_init__(self):
        _check_sequence(self, "windows")
        if not self.windows or min(self.windows) < 1:
            raise ValueError(
                "WindowSchedule.windows must hold at least one window of at least 1 "
                f"token, got {self.windows!r}"
            )
        _check_within(self, "anneal_fraction", 0.0, 1.0)
        if self.anneal_window is not None:
            _check_at_least(self, 1, "anneal_window")
        if self.probabilities is not None:
            self._check_probabilities(self.probabilities)

    def _check_probabilities(self, probabilities: tuple[float, ...]) -> None:
        _check_sequence(self, "probabilities")
        if (
            len(probabilities) != len(self.windows)
            or min(probabilities) < 0
            or not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6)
        ):
            raise ValueError(
                "WindowSchedule.probabilities must hold one number >= 0 for each of "
                f"windows={self.windows!r}, with a sum of 1; got {probabilities!r}"
            )

    @property
    def smallest(self) -> int:
        """The smallest window that a step can have, in tokens."""
        return min(self._all())

    @property
    def largest(self) -> int:
        """The largest window that a step can have, in tokens."""
        return max(self._all())

    def _all(self) -> tuple[int, ...]:
        annealed = () if self.anneal_window is None else (self.anneal_window,)
        return self.windows + annealed


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are divided; it changes speed and memory, not the result."""

    data: int | None = None
    """Copies of the parameters, each with its own rows. None: as many as the devices
    allow."""
    fsdp: int = 1
    """Pieces that parameters and optimizer state are cut into, each with its own
    rows."""
    tensor: int = 1
    """Pieces that heads, feed-forward width and vocabulary are cut into."""

    def __post_init__(self):
        _check_at_least(self, 1, "fsdp", "tensor")
        if self.data is not None:
            _check_at_least(self, 1, "data")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Number of checkpoints kept, the newest ones."""

    def __post_init__(self):
        _check_at_least(self, 1, "every", "keep")


@dataclass(frozen=True)
class LoggingConfig:
    """When the run speaks."""

    every: int = 1
    """Steps between lines of metrics.jsonl."""
    console_seconds: float = 5.0
    """Seconds between lines on a console that is no terminal."""
    validation_every: int = 500
    """Steps between validations; the last step is always validated."""
    validation_batches: int = 8
    """Batches of a validation during training, the same ones every time."""

    def __post_init__(self):
        _check_at_least(self, 1, "every", "validation_every", "validation_batches")
        _check_within(self, "console_seconds", 0.0, math.inf)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a training run depends on, but the text and the machine."""

    model: ModelConfig
    data: DataConfig
    preset: str = "swax-nano"
    """Preset that this configuration began from."""
    steps: int = 1000
    """Optimizer steps of the whole run."""
    seed: int = 0
    """Seed of the initial parameters, the split, the order of rows and the windows."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    windows: WindowSchedule = field(default_factory=WindowSchedule)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self):
        _check_at_least(self, 1, "steps")
        _check_at_least(self, 0, "seed")
        if self.seed >= 2**32:
            raise ValueError(f"RunConfig.seed must be below 2**32, got {self.seed}")
        if (
            self.data.tokenizer != "bytes"
            and self.data.vocab_size > self.model.vocab_size
        ):
            raise ValueError(
                "RunConfig: the tokenizer may have at most as many pieces as the model "
                f"has ids, got data.vocab_size={self.data.vocab_size}, "
                f"model.vocab_size={self.model.vocab_size}"
            )


# Per size: steps, rows, tokens per row, and what differs from the defaults above.
# 1.4b is the budget of arXiv:2509.24552 (150e9 tokens in rows of 16 384), 7b the same;
# learning rates at 1.4b and above, betas, decay and clipping are those of the xLSTM
# recipes, since the paper gives none. The smaller sizes see about 20 tokens per
# parameter.
RECIPES: dict[str, dict[str, Any]] = {
    "nano": {
        "steps": 250,
        "rows": 16,
        "seq_len": 256,
        "optimizer": {"peak_lr": 4e-3, "warmup_fraction": 0.05, "clip_norm": 1.0},
        "windows": {"windows": (32, 256), "probabilities": (0.5, 0.5)},
        "checkpoint": {"every": 50},
        "logging": {"validation_every": 50, "validation_batches": 8},
    },
    "60m": {
        "steps": 9_000,
        "rows": 32,
        "seq_len": 4096,
        "optimizer": {"peak_lr": 2e-3},
    },
    "160m": {
        "steps": 12_000,
        "rows": 64,
        "seq_len": 4096,
        "optimizer": {"peak_lr": 1.5e-3},
    },
    "410m": {
        "steps": 16_000,
        "rows": 128,
        "seq_len": 4096,
        "optimizer": {"peak_lr": 1e-3},
    },
    "1.4b": {
        "steps": 71_500,
        "rows": 128,
        "seq_len": 16_384,
        "optimizer": {"peak_lr": 7e-4, "warmup_fraction": 0.01},
        "logging": {"every": 10},
    },
    "7b": {
        "steps": 71_500,
        "rows": 128,
        "seq_len": 16_384,
        "optimizer": {"peak_lr": 5e-4, "warmup_fraction": 0.01},
        "windows": {"probabilities": (0.75, 0.25)},
        "logging": {"every": 10},
    },
}


def recipe(preset: str, /) -> RunConfig:
    """The run that trains the model of a preset: its size decides all but the mixers.

    Raises ValueError for a name that is no preset.
    """
    model = model_preset(preset)
    numbers = RECIPES[preset.partition("-")[2]]
    return RunConfig(
        preset=preset,
        model=model,
        data=replace(
            DataConfig(), vocab_size=model.vocab_size, seq_len=numbers["seq_len"]
        ),
        steps=numbers["steps"],
        batch=BatchConfig(rows=numbers["rows"]),
        optimizer=OptimizerConfig(**numbers.get("optimizer", {})),
        windows=WindowSchedule(**numbers.get("windows", {})),
        checkpoint=CheckpointConfig(**numbers.get("checkpoint", {})),
        logging=LoggingConfig(**numbers.get("logging", {})),
    )


def _check_at_least(config: Any, minimum: int, /, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < minimum:
            raise ValueError(
                f"{type(config).__name__}.{name} must be an integer >= {minimum}, "
                f"got {value!r}"
            )


def _check_within(config: Any, name: str, low: float, high: float, /) -> None:
    value = getattr(config, name)
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(
            f"{type(config).__name__}.{name} must be a number from {low:g} to "
            f"{high:g}, got {value!r}"
        )


def _check_sequence(config: Any, name: str, /) -> None:
    value = getattr(config, name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(
            f"{type(config).__name__}.{name} must be a tuple, got {value!r}"
        )
