"""The grid and its sizes, as data: frozen dataclasses, checked when they are made."""

import dataclasses
from typing import Literal

from swa_jax.models.accounting import training_flops_per_token
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.training.config import OptimizerConfig

State = Literal["random", "trained"]
Kind = Literal["swa", "swax"]

PATTERNS: dict[Kind, tuple[str, ...]] = {"swa": ("swa",), "swax": ("swa", "mlstm")}
BYTE_VOCABULARY = 257
ROW_MULTIPLE = 128  # tokens


@dataclasses.dataclass(frozen=True)
class Design:
    """A model of the grid."""

    window: int
    layers: int
    scale: float = 1.0
    """Multiplies, at the start, what every branch writes to the residual stream."""
    kind: Kind = "swa"

    def __post_init__(self) -> None:
        if self.window < 2 or self.layers < 1 or not self.scale > 0:
            raise ValueError(
                "a design wants a window of at least 2 tokens, at least 1 layer and a "
                f"scale above 0; got {self}"
            )
        if self.layers % len(PATTERNS[self.kind]):
            raise ValueError(f"layers must be whole periods of {self.kind}; got {self}")

    @property
    def window_layers(self) -> int:
        """Number of layers with a window."""
        return self.layers // len(PATTERNS[self.kind])

    @property
    def measured_tokens(self) -> int:
        """Tokens of a measured row: all that `layers` windows reach, at least one more
        window, where the influence of windows alone must be zero, and what makes the
        row a multiple of ROW_MULTIPLE, so that few lengths are compiled."""
        needed = self.layers * (self.window - 1) + 1 + self.window
        return ROW_MULTIPLE * -(-needed // ROW_MULTIPLE)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of one seed, as it is initialised or after its training."""

    state: State
    kind: Kind
    window: int
    layers: int
    scale: float
    seed: int

    @property
    def design(self) -> Design:
        """The model, whatever its seed."""
        return Design(self.window, self.layers, self.scale, self.kind)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all models have alike."""

    d_model: int
    heads: int
    feed_forward_width: int
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Of training; influence is measured in float32."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model is trained: on code in bytes, with equal FLOPs for every design."""

    flops: float
    """Of a training, by the models' own account."""
    rows: int
    seq_len: int
    """Tokens of a row."""
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How influence is measured: at the last token of rows of held-out text."""

    rows: int
    probes: int
    tolerance: float
    """Share of the influence that the horizon leaves out."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A grid that one command runs: every design at random, some trained as well."""

    name: str
    shape: Shape
    training: Training
    measuring: Measuring
    random: tuple[Design, ...]
    trained: tuple[Design, ...]
    seeds: int = 3
    """Seeds 0, 1, ... of the initial parameters, of training rows and of probes."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or not (self.random or self.trained):
            raise ValueError(
                f"a grid wants at least one seed and one design, got {self.seeds=}, "
                f"{len(self.random)} and {len(self.trained)} designs."
            )

    @property
    def cells(self) -> list[Cell]:
        """Every cell, those of one model next to each other, the trained ones last:
        they take longest."""
        states: dict[State, tuple[Design, ...]] = {
            "random": tuple(dict.fromkeys((*self.random, *self.trained))),
            "trained": self.trained,
        }
        return [
            Cell(state, x.kind, x.window, x.layers, x.scale, seed)
            for state, designs in states.items()
            for x in designs
            for seed in range(self.seeds)
        ]


def cell_model(size: Size, design: Design, /) -> ModelConfig:
    """The model of a design."""
    pattern = PATTERNS[design.kind]
    return ModelConfig(
        vocab_size=BYTE_VOCABULARY,
        d_model=size.shape.d_model,
        pattern=pattern,
        periods=design.layers // len(pattern),
        attention=AttentionConfig(heads=size.shape.heads),
        mlstm=MLSTMConfig(heads=size.shape.heads),
        feed_forward_width=size.shape.feed_forward_width,
        logit_softcap=None,
        dtype=size.shape.dtype,
    )


def training_flops(size: Size, design: Design, /) -> int:
    """FLOPs/token of a design's training, by the models' own account."""
    return training_flops_per_token(
        cell_model(size, design), seq_len=size.training.seq_len, window=design.window
    )


def training_steps(size: Size, design: Design, /) -> int:
    """Steps of a design: as many as the FLOPs of a training allow, at least one."""
    tokens = size.training.rows * size.training.seq_len
    return max(1, round(size.training.flops / (tokens * training_flops(size, design))))


def _grid(
    windows: tuple[int, ...], layers: tuple[int, ...], scales: tuple[float, ...]
) -> tuple[Design, ...]:
    """Windows by layers at scale 1; the middle window also at the other scales."""
    middle = windows[len(windows) // 2]
    plain = [Design(w, n) for w in windows for n in layers]
    return (*plain, *(Design(middle, n, s) for s in scales for n in layers))


def _trained(window: int, layers: int) -> tuple[Design, ...]:
    """One design, the same with a memory between the windows, and other depths and
    another scale."""
    plain = Design(window, layers)
    return (
        plain,
        dataclasses.replace(plain, kind="swax"),
        dataclasses.replace(plain, layers=2 * layers),
        dataclasses.replace(plain, layers=layers // 2),
        dataclasses.replace(plain, scale=4.0),
    )


SIZES = {
    "cpu": Size(
        name="cpu",
        shape=Shape(d_model=64, heads=2, feed_forward_width=128),
        training=Training(
            flops=3e11,
            rows=4,
            seq_len=256,
            optimizer=OptimizerConfig(peak_lr=4e-3, warmup_fraction=0.1, clip_norm=1.0),
        ),
        measuring=Measuring(rows=8, probes=2, tolerance=0.01),
        random=_grid((8, 16, 32), (2, 4, 8, 16), (4.0, 16.0)),
        trained=_trained(16, 4),
    ),
    "gpu": Size(
        name="gpu",
        shape=Shape(d_model=512, heads=8, feed_forward_width=1408, dtype="bfloat16"),
        training=Training(
            flops=2e15,
            rows=16,
            seq_len=2048,
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_fraction=0.1, clip_norm=1.0),
        ),
        measuring=Measuring(rows=8, probes=8, tolerance=0.01),
        random=_grid((64, 128, 256), (4, 8, 16, 24), (4.0, 16.0)),
        trained=_trained(128, 8),
    ),
    # Says whether the program runs, and nothing else.
    "quick": Size(
        name="quick",
        shape=Shape(d_model=16, heads=2, feed_forward_width=16),
        training=Training(
            flops=3e7, rows=2, seq_len=32, optimizer=OptimizerConfig(peak_lr=4e-3)
        ),
        measuring=Measuring(rows=2, probes=2, tolerance=0.01),
        random=(Design(4, 2),),
        trained=(Design(4, 2), Design(4, 2, kind="swax")),
        seeds=1,
    ),
}
