"""What a training run is, as data: frozen dataclasses, checked when they are made."""

import math
from dataclasses import dataclass, field
from typing import Literal

from swa_jax.data.config import DataConfig
from swa_jax.models.config import ModelConfig
from swa_jax.training.batch_schedule import BatchConfig
from swa_jax.training.checks import check_at_least, check_within
from swa_jax.training.guard_config import GuardConfig
from swa_jax.training.optimizer_config import OptimizerConfig
from swa_jax.training.runtime_config import RuntimeConfig
from swa_jax.training.window_schedule import WindowSchedule

__all__ = [
    "BatchConfig",
    "CheckpointConfig",
    "GuardConfig",
    "LoggingConfig",
    "LossConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RunConfig",
    "RuntimeConfig",
    "WindowSchedule",
]

# A checkpoint by its step, or by what it is: the one of the lowest validation loss.
Step = int | Literal["newest", "best"]


@dataclass(frozen=True)
class LossConfig:
    """The loss, and how much of it stands in memory."""

    chunk: int | None = None
    """Tokens of each row whose logits stand in memory at once; it changes memory and
    time, the result by rounding only. None: as many as a gibibyte of logits allows."""
    z_loss: float = 0.0
    """Weight of the square of the logarithm of the softmax's denominator, which keeps
    logits from drifting. It is not in the loss that is reported."""

    def __post_init__(self):
        if self.chunk is not None:
            check_at_least(self, 1, "chunk")
        check_within(self, "z_loss", 0.0, 1.0)


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
    context: int = 1
    """Pieces that the tokens of a row are cut into, for rows too long for one device:
    windows exchange their edges, recurrences their states, full attention its keys."""

    def __post_init__(self):
        check_at_least(self, 1, "fsdp", "tensor", "context")
        if self.data is not None:
            check_at_least(self, 1, "data")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Number of checkpoints kept, the newest ones. The best one is kept beside them:
    that of the lowest validation loss, of the steps that are saved and validated."""

    def __post_init__(self):
        check_at_least(self, 1, "every", "keep")


@dataclass(frozen=True)
class LoggingConfig:
    """When the run speaks."""

    every: int = 1
    """Steps between lines of metrics.jsonl."""
    statistics_every: int = 10
    """Steps between readings of gates, normalisers and attention logits, of the first
    tokens of one row."""
    console_seconds: float = 5.0
    """Seconds between lines on a console that is no terminal."""
    validation_every: int = 500
    """Steps between validations; the last step is always validated."""
    validation_batches: int = 8
    """Batches of a validation during training, the same ones every time."""

    def __post_init__(self):
        check_at_least(self, 1, "every", "validation_every", "validation_batches")
        check_at_least(self, 1, "statistics_every")
        check_within(self, "console_seconds", 0.0, math.inf)


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
    loss: LossConfig = field(default_factory=LossConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    windows: WindowSchedule = field(default_factory=WindowSchedule)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self):
        check_at_least(self, 1, "steps")
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise ValueError(
                "RunConfig.seed must be an integer >= 0 and below 2**32, got "
                f"{self.seed!r}"
            )
        if (
            self.data.tokenizer == "bpe"
            and self.data.vocab_size > self.model.vocab_size
        ):
            raise ValueError(
                "RunConfig: the tokenizer may have at most as many pieces as the model "
                f"has ids, got data.vocab_size={self.data.vocab_size}, "
                f"model.vocab_size={self.model.vocab_size}"
            )
        if self.data.seq_len % self.mesh.context:
            raise ValueError(
                "RunConfig: data.seq_len must be a multiple of mesh.context, pieces "
                f"of a row, got data.seq_len={self.data.seq_len}, "
                f"mesh.context={self.mesh.context}"
            )
        profiled = self.runtime.profile_steps
        if profiled is not None and profiled[1] > self.steps:
            raise ValueError(
                "RunConfig: runtime.profile_steps must be steps of the run, got "
                f"runtime.profile_steps={profiled!r}, steps={self.steps}"
            )
