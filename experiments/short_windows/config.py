"""The arms and the sizes of the experiment, as data."""

import dataclasses
from typing import Literal

from swa_jax.training.config import OptimizerConfig, WindowSchedule


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model and how its window is drawn: what differs between two runs."""

    name: str
    pattern: tuple[str, ...]
    """Mixers of one period of layers."""
    windows: WindowSchedule
    """Windows (tokens) of the layers "swa" in training."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: an arm, and the seed of its parameters, rows and windows."""

    arm: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """The model of every arm, but for mixers and the feed-forward's width."""

    d_model: int
    layers: int
    heads: int
    feed_forward_width: int
    """Of the Transformer; the other arms get the width that gives them as many
    parameters."""
    text_tokens: int
    """Pieces of the BPE that spells the code; the ids of keys and values follow."""
    convolution: bool
    """A short convolution in front of every mixer."""
    dtype: Literal["bfloat16", "float32"] = "float32"


@dataclasses.dataclass(frozen=True)
class Training:
    """How every arm is trained; its steps follow from its FLOPs/token."""

    steps: int
    """Optimizer steps of the arm "swax_long"; the others get as many as cost the same
    training FLOPs by the accounting."""
    rows: int
    """Rows of a step."""
    seq_len: int
    """Tokens of a row."""
    pairs: int
    """Pairs of key and value in a row, hidden in code; a key that comes again asks for
    its value."""
    keys_per_row: tuple[int, ...]
    """Different keys of a row: one of these numbers, drawn for every row."""
    keys: int
    """Different keys in all."""
    values: int
    """Different values in all."""
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Tests:
    """What a trained model is judged by, at several windows each."""

    windows: tuple[int, ...]
    """Windows (tokens) of the test, trained ones and larger."""
    lengths: tuple[int, ...]
    """Tokens of a row with needles, to far beyond the training's."""
    pairs: int
    """Pairs of a row with needles, each asked for once."""
    tokens: int
    """Tokens of all rows of a length, or one row, if that is longer."""
    longest_untrained: int
    """Tokens of the longest row that is tested at a window above the trained ones."""
    code_length: int
    """Tokens of a row of held-out code, for the loss by position."""
    code_rows: int


@dataclasses.dataclass(frozen=True)
class Size:
    """All that one command trains and tests."""

    name: str
    shape: Shape
    training: Training
    tests: Tests
    windows: tuple[int, int]
    """The smallest and the largest window (tokens): 128 and 2048 in the paper."""
    arms: tuple[str, ...] = ()
    """Names of the arms; none: all."""
    seeds: int = 3

    def __post_init__(self) -> None:
        short, long = self.windows
        if not 1 <= short < long or long % short:
            raise ValueError(
                "windows must be a small one and a multiple of it, got "
                f"windows={self.windows}"
            )
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the named arms, all arms of a seed before the next seed."""
        return [Cell(arm, seed) for seed in range(self.seeds) for arm in self.arms]


SIZES = {
    # Windows are a 32nd of the paper's, the row a 64th of its 16 384 tokens.
    "cpu": Size(
        name="cpu",
        shape=Shape(
            d_model=64,
            layers=4,
            heads=2,
            feed_forward_width=160,
            text_tokens=512,
            convolution=True,
        ),
        training=Training(
            steps=800,
            rows=4,
            seq_len=256,
            pairs=40,
            keys_per_row=(1, 2, 4, 8, 16),
            keys=32,
            values=32,
            optimizer=OptimizerConfig(peak_lr=4e-3, warmup_fraction=0.1, clip_norm=1.0),
        ),
        tests=Tests(
            windows=(4, 64, 256),
            lengths=(256, 1024, 4096, 16384),
            pairs=8,
            tokens=2**16,
            longest_untrained=1024,
            code_length=2048,
            code_rows=24,
        ),
        windows=(4, 64),
    ),
    # The paper's windows; a row is a quarter of its 16 384 tokens.
    "gpu": Size(
        name="gpu",
        shape=Shape(
            d_model=512,
            layers=8,
            heads=8,
            feed_forward_width=1408,
            text_tokens=4096,
            convolution=False,
            dtype="bfloat16",
        ),
        training=Training(
            steps=1500,
            rows=8,
            seq_len=4096,
            pairs=640,
            keys_per_row=(1, 4, 16, 64, 256),
            keys=512,
            values=512,
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_fraction=0.1, clip_norm=1.0),
        ),
        tests=Tests(
            windows=(128, 2048, 8192),
            lengths=(4096, 16384, 65536, 131072),
            pairs=128,
            tokens=2**20,
            longest_untrained=16384,
            code_length=16384,
            code_rows=24,
        ),
        windows=(128, 2048),
    ),
    # Says whether the program runs, and nothing else.
    "quick": Size(
        name="quick",
        shape=Shape(
            d_model=16,
            layers=2,
            heads=2,
            feed_forward_width=64,
            text_tokens=257,
            convolution=True,
        ),
        training=Training(
            steps=4,
            rows=2,
            seq_len=32,
            pairs=6,
            keys_per_row=(1, 2),
            keys=4,
            values=4,
            optimizer=OptimizerConfig(peak_lr=4e-3),
        ),
        tests=Tests(
            windows=(2, 8, 16),
            lengths=(32, 64),
            pairs=2,
            tokens=64,
            longest_untrained=32,
            code_length=64,
            code_rows=2,
        ),
        windows=(2, 8),
        arms=("swax_short", "swax_long", "swax_stochastic", "xlstm"),
        seeds=1,
    ),
}
