"""The arms and the sizes of the experiment, as data."""

import dataclasses
from typing import Literal

from swa_jax.data.needles.config import NeedleConfig
from swa_jax.training.config import OptimizerConfig, WindowSchedule

SwaMixer = Literal["swa", "short_conv+swa"]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model and how its window is drawn: what differs between two runs."""

    name: str
    pattern: tuple[str, ...]
    """Mixers of one period of layers."""
    windows: WindowSchedule = dataclasses.field(default_factory=WindowSchedule)
    """Windows (tokens) of the layers "swa" in training."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: an arm and the seed of parameters, rows and windows."""

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
    vocab_size: int
    dtype: Literal["bfloat16", "float32"] = "float32"


@dataclasses.dataclass(frozen=True)
class Training:
    """What every arm is trained with; its steps follow from its FLOPs/token."""

    steps: int
    """Optimizer steps of the arm "swax_long"; the others get as many as cost the same
    training FLOPs by the accounting."""
    rows: int
    """Rows of a step."""
    seq_len: int
    """Tokens of a row."""
    needle_share: float
    """Share of the rows that hold needles; the others hold code."""
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Needles:
    """The documents with needles, and the tests."""

    documents: int
    """Documents to draw training rows from."""
    longest: int
    """Most bytes of hay between a needle and its first question, and between
    questions; the lengths are uniform in their logarithm."""
    questions: int
    """Questions in a document."""
    kinds: dict[str, NeedleConfig]
    """What documents and tests hold, by name."""
    lengths: tuple[int, ...]
    """Tokens of a test, from a window's to far beyond a training row's."""
    samples: int
    """Tests of a kind and a length; their needles stand at all depths."""


@dataclasses.dataclass(frozen=True)
class Size:
    """All that one command trains and tests."""

    name: str
    shape: Shape
    training: Training
    needles: Needles
    windows: tuple[int, int]
    """The smallest and the largest window (tokens): 128 and 2048 in the paper."""
    scale: int
    """The paper's windows over ours."""
    convolution: bool
    """A short convolution in front of every mixer."""
    seeds: int = 3
    arms: tuple[str, ...] = ()
    """Names of the arms; none given: all."""
